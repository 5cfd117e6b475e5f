"""Settings: their sources, and the messages of wrong ones."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from momentum_sync.errors import Unsuitable
from momentum_sync.settings import duration, read, unknown


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "DATABASE_URL", "SUPABASE_URL", "SUPABASE_JWT_SECRET", "SUPABASE_ANON_KEY", "SUPABASE_SERVICE_ROLE_KEY",
        "MOMENTUM_PORT", "MOMENTUM_HOST",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_sane() -> None:
    settings = read()
    assert (settings.host, settings.port, settings.database_url) == ("127.0.0.1", 8787, None)
    assert settings.development
    assert settings.retention == timedelta(days=7)


def test_flags_go_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("MOMENTUM_PORT=1\nMOMENTUM_SLOT=from_file\nDATABASE_URL=postgresql://file/x\n")
    monkeypatch.setenv("MOMENTUM_PORT", "2")
    settings = read(database_url="postgresql://flag/x")
    assert (settings.port, settings.slot, settings.database_url) == (2, "from_file", "postgresql://flag/x")
    assert read(port=3).port == 3


def test_the_contracts_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", "https://p.example/")
    monkeypatch.setenv("SUPABASE_JWT_SECRET", "s")
    monkeypatch.setenv("SUPABASE_ANON_KEY", "a")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "k")
    monkeypatch.setenv("MOMENTUM_ALLOWED_ORIGINS", "https://a.example, https://b.example")
    settings = read()
    assert settings.issuer == "https://p.example/auth/v1"
    assert settings.allowed_origins == ("https://a.example", "https://b.example")
    assert not settings.development
    shown = repr(settings)
    assert "'s'" not in shown
    assert "'k'" not in shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 99999}, "MOMENTUM_PORT"),
        ({"retention": "soon"}, "MOMENTUM_RETENTION"),
        ({"retention": "0s"}, "MOMENTUM_RETENTION"),
        ({"slot": "No Slot"}, "MOMENTUM_SLOT"),
        ({"log_level": "LOUD"}, "MOMENTUM_LOG_LEVEL"),
        ({"window_bytes": 1}, "MOMENTUM_WINDOW_BYTES"),
    ],
)
def test_a_wrong_one_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(Unsuitable, match=said):
        read(**given)


def test_without_a_secret_the_server_stays_on_loopback() -> None:
    with pytest.raises(Unsuitable, match="without a JWT secret") as unsuitable:
        read(host="0.0.0.0")
    assert unsuitable.value.hint
    assert read(host="0.0.0.0", jwt_secret="s" * 32).host == "0.0.0.0"
    assert read(host="::1").host == "::1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5s", 5),
        ("1.5m", 90),
        ("2 h", 7200),
        ("3d", 259200),
        ("", None),
        ("5", None),
        ("99999999999d", None),
        ("h", None),
        ("-1s", None),
    ],
)
def test_durations(text: str, expected: float | None) -> None:
    found = duration(text)
    assert (None if found is None else found.total_seconds()) == expected


SECRETS = ["SUPABASE_JWT_SECRET", "SUPABASE_ANON_KEY", "SUPABASE_SERVICE_ROLE_KEY"]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_an_empty_secret_is_an_error_wherever_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, way: str
) -> None:
    given = {}
    if way == "flag":
        given = {name.removeprefix("SUPABASE_").lower(): value}
    elif way == "environment":
        monkeypatch.setenv(name, value)
    else:
        (tmp_path / ".env").write_text(f"{name}={value}\n")
    with pytest.raises(Unsuitable, match=f"{name} is empty"):
        read(**given)


def test_what_else_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOMENTUM_PORT", "")
    monkeypatch.setenv("DATABASE_URL", "")
    assert (read().port, read().database_url) == (8787, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"jwt_secret": "x" * 31}, "SUPABASE_JWT_SECRET is shorter than 32 bytes"),
        ({"jwt_secret": "x" * 32, "service_role_key": "x" * 15}, "SUPABASE_SERVICE_ROLE_KEY is shorter than 16 bytes"),
    ],
)
def test_short_secrets_stay_on_loopback(given: dict[str, str], said: str) -> None:
    with pytest.raises(Unsuitable, match=said):
        read(host="0.0.0.0", **given)
    assert read(**given).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"supabase_url": "https://p.example"}, "SUPABASE_URL"),
        ({"anon_key": "a"}, "SUPABASE_ANON_KEY"),
        ({"service_role_key": "k"}, "SUPABASE_SERVICE_ROLE_KEY"),
        ({"host": "0.0.0.0", "jwt_secret": "x" * 32}, "MOMENTUM_HOST=0.0.0.0"),
    ],
)
def test_a_forgotten_database_is_not_replaced_by_an_embedded_one(given: dict[str, str], named: str) -> None:
    with pytest.raises(Unsuitable, match=f"DATABASE_URL is not set, .* together with {named}"):
        read(**given).check_embedded()
    read().check_embedded()


def test_variables_that_look_like_settings_and_are_none() -> None:
    assert unknown(["PATH", "MOMENTUM_PORT", "MOMENTUM_PROT", "MOMENTUM_SLOT", "MOMENTUM_METRICS_SAMPLE"]) == [
        "MOMENTUM_METRICS_SAMPLE", "MOMENTUM_PROT"
    ]  # fmt: skip
