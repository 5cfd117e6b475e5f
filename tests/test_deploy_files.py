"""The files in `deploy/`: the files, settings and paths in them exist, and the image's steps work in an empty folder.

No container runtime and no cluster are at hand here; docs/operate.md names the parts that are not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from momentum_sync.settings import Settings, read, variable
from momentum_sync.version import __version__

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SETTINGS = {variable(name) for name in Settings.model_fields}
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES: list[dict[str, Any]] = yaml.safe_load(
    (DEPLOY / "kubernetes" / "momentum-sync.yaml").read_text(encoding="utf-8")
)["items"]
PROBES = {"/sync/health/live", "/sync/health/ready"}
OURS = ("migrate", "capture", "capture-standby", "gateway-1", "gateway-2")


def test_compose_gives_settings_that_exist_and_that_fit_together() -> None:
    for name in OURS:
        given = {key: re.sub(r"\$\{\w+:[?-]\}", "x" * 32, value) for key, value in service(name)["environment"].items()}
        assert given.keys() <= SETTINGS, name
        if name != "migrate":
            by_variable = {variable(field): field for field in Settings.model_fields}
            read(**{by_variable[key]: value for key, value in given.items()}, host="0.0.0.0")


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"][name]
    return found


def test_compose_confines_our_processes_and_waits_for_what_they_need() -> None:
    for name in OURS:
        assert service(name)["read_only"]
        assert service(name)["cap_drop"] == ["ALL"]
    assert service("gateway-1")["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert service("migrate")["depends_on"]["postgres"] == {"condition": "service_healthy"}
    command = service("postgres")["command"]
    assert "wal_level=logical" in command
    assert any(each.startswith("max_slot_wal_keep_size=") for each in command)


def test_compose_asks_for_every_variable_in_its_example() -> None:
    text = (DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8")
    example = (DEPLOY / "compose" / "example.env").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+)", text)) == set(re.findall(r"^(\w+)=", example, re.MULTILINE))


def test_what_compose_mounts_is_there() -> None:
    for name, one in COMPOSE["services"].items():
        for mounted in one.get("volumes", []):
            source = mounted.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).is_file(), name
    targets = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"][0]
    assert targets["job_name"] == "momentum-sync", "as the alert rules have it"
    assert {target.partition(":")[0] for target in targets["static_configs"][0]["targets"]} == set(OURS) - {"migrate"}


def test_caddy_understands_its_file() -> None:
    caddy = shutil.which("caddy")
    if caddy is None:
        assert "CI" not in os.environ, "CI installs Caddy"
        pytest.skip("needs Caddy, which CI installs")
    done = subprocess.run(
        [caddy, "validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "compose" / "Caddyfile")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def of(kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in KUBERNETES if item["kind"] == kind}


def test_kubernetes_gives_settings_that_exist_and_probes_that_answer() -> None:
    for name, item in (of("Deployment") | of("Job")).items():
        pod = item["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert {each["name"] for each in container.get("env", [])} <= SETTINGS, name
        assert container["image"] == f"momentum-sync:{__version__}"
        assert container["securityContext"]["readOnlyRootFilesystem"]
        for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
            if item["kind"] == "Deployment":
                assert container[probe]["httpGet"]["path"] in PROBES
    assert set(json.loads(openapi())["paths"]) >= PROBES


def openapi() -> str:
    code = (
        "from momentum_sync.limits import Limits; from momentum_sync.eventlog.feed import LocalFeed;"
        "from momentum_sync.eventlog.window import Window; from momentum_sync.identity.keys import Authenticator;"
        "from momentum_sync.identity.tokens import TokenRules; import json;"
        "from momentum_sync.gateway.http.api import make_capture_api;"
        "print(json.dumps(make_capture_api(LocalFeed(Window(1)), Authenticator(TokenRules(secret='x'*32),"
        " Limits().keys), lambda: b'', Limits(), metrics_open=False).openapi()))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_termination_grace_period_covers_the_drain() -> None:
    spec = of("Deployment")["momentum-sync-gateway"]["spec"]["template"]["spec"]
    (drain,) = [each["value"] for each in spec["containers"][0]["env"] if each["name"] == "MOMENTUM_DRAIN"]
    stop = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > int(drain.removesuffix("s")) + stop + 10


def test_selectors_find_their_pods() -> None:
    pods = {name: item["spec"]["template"]["metadata"]["labels"] for name, item in of("Deployment").items()}
    for name, item in of("Deployment").items():
        assert item["spec"]["selector"]["matchLabels"].items() <= pods[name].items()
    for name, item in of("PodDisruptionBudget").items():
        assert item["spec"]["selector"]["matchLabels"].items() <= pods[name].items()
    (only,) = of("Service").values()
    assert only["spec"]["selector"].items() <= pods["momentum-sync-gateway"].items()
    assert not only["spec"]["selector"].items() <= pods["momentum-sync-capture"].items()


def test_the_unit_is_confined() -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        assert "CI" not in os.environ, "CI installs systemd"
        pytest.skip("needs systemd, which CI installs")
    unit = DEPLOY / "systemd" / "momentum-sync.service"
    done = subprocess.run(
        [tool, "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    checked = subprocess.run([tool, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60)
    said = [line for line in checked.stderr.splitlines() if "is not executable" not in line]
    assert said == [], "only the program, which is not installed here, may be missing"


# The image


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_the_steps_of_the_image_work_in_an_empty_folder(tmp_path: Path) -> None:
    """Each COPY and RUN of the build, with absolute paths below the folder; then as in the image, read-only."""
    source, inside = tmp_path / "source", f"PATH={os.environ['PATH']}"
    source.mkdir()
    build = instructions()
    build = build[: next(number for number, step in enumerate(build) if number and step[0] == "FROM")]
    for instruction, rest in build:
        if instruction == "COPY":
            *names, target = rest.split()
            for name in names:
                copy(ROOT / name, source / target / (Path(name).name if target.endswith(("/", "./")) else ""))
        elif instruction == "RUN":
            command = re.sub(r"/(opt|tmp)/", rf"{tmp_path}/\1/", rest)
            command = re.sub(r"^python ", f"{sys.executable} ", command)
            done = subprocess.run(["env", "-i", inside, f"HOME={tmp_path}/home", *pip_settings(), "sh", "-c", command],
                                  cwd=source, capture_output=True, text=True, timeout=600)  # fmt: skip
            assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    program = tmp_path / "opt" / "momentum-sync" / "bin" / "momentum-sync"
    # As in the second stage: nothing can be written, and there is no home.
    for path in (tmp_path / "opt").rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "MOMENTUM_DATA_DIR": "/nowhere"}
    told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, env=environment, cwd="/")
    assert told.stdout == f"momentum-sync {__version__}\n", told.stderr
    asked = subprocess.run(
        [program, "doctor", "--json", "--database-url", "postgresql://127.0.0.1:1/none"], capture_output=True,
        text=True, timeout=60, env={**environment, "SUPABASE_JWT_SECRET": "x" * 32}, cwd="/",
    )  # fmt: skip
    assert asked.returncode == 1, asked.stderr
    assert "cannot be reached" in asked.stdout


def test_the_image_installs_nothing_that_is_not_locked() -> None:
    installs = [rest for step, rest in instructions() if step == "RUN" and "pip install" in rest]
    assert len(installs) > 2
    for rest in installs:
        assert "--require-hashes" in rest or ("--no-deps" in rest and "/tmp/dist/" in rest), rest


def pip_settings() -> list[str]:
    """Return how this machine reaches the registries, which is its own affair and no part of the image."""
    return [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))]


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def test_the_image_runs_as_nobody_and_stops_in_order() -> None:
    last = instructions()[max(number for number, step in enumerate(instructions()) if step[0] == "FROM") :]
    found = dict(last)
    assert found["USER"] == "10001:10001"
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(found["ENTRYPOINT"]) == ["momentum-sync"]
    assert "/sync/health/ready" in found["HEALTHCHECK"]
    names = {pair.partition("=")[0] for step, rest in last if step == "ENV" for pair in rest.split()}
    assert {name for name in names if name.startswith("MOMENTUM_")} <= SETTINGS
