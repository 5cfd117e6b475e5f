"""The request of a client that connects."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.errors import BadRequest, Forbidden, NotFound
from momentum_sync.gateway import handshake
from momentum_sync.gateway.handshake import ConnectRequest
from momentum_sync.wire.paths import PREFIX

USER = UUID("00000000-0000-4000-8000-000000000001")


def test_what_is_left_out_is_filled_in() -> None:
    assert handshake.connect_request({}, USER) == ConnectRequest(USER, None, [], None, "other")


def test_everything_given() -> None:
    query, _ = handshake.address(
        f"{PREFIX}?user_id=00000000-0000-4000-8000-000000000002&client_id=phone&channels=a,,b&last_event_id=e-1&sdk=js-1.20.3&x=1&x=2"
    )
    assert query["x"] == "2"
    expected = ConnectRequest(UUID(int=0x4000_8000_0000_0000_0002), "phone", ["a", "b"], "e-1", "js-1.20.3")
    assert handshake.connect_request(query, USER) == expected


@pytest.mark.parametrize(
    "named", ["", "js", "js-1", "JS-1.0.0", "js-1.0.0 ", "x" * 17 + "-1.0.0", "js-12345.0.0", "js-1.0.0\n"]
)
def test_malformed_sdk_counts_as_other(named: str) -> None:
    assert handshake.sdk_of({"sdk": named}) == "other"


@given(st.dictionaries(st.sampled_from(["user_id", "client_id", "channels", "last_event_id"]), st.text()))
def test_any_query_is_read_or_refused(query: dict[str, str]) -> None:
    try:
        read = handshake.connect_request(query, USER)
    except BadRequest:
        return
    assert read.client_id != ""
    assert all(read.channels)


@given(st.text())
def test_any_target_is_ours_or_not_found(target: str) -> None:
    try:
        handshake.address(target)
    except (NotFound, BadRequest):
        return
    assert target.startswith(("/ws", PREFIX))


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([], None),
        (["momentum.v1"], None),
        (["momentum.v1, bearer.a.b.c"], "a.b.c"),
        (["momentum.v1", "bearer.t"], "t"),
        (["bearer."], ""),
        (["momentum.v1,bearer.t"], "t"),
    ],
)
def test_the_token_among_subprotocols(headers: list[str], token: str | None) -> None:
    assert handshake.token_of_subprotocols({"sec-websocket-protocol": headers} if headers else {}) == token


@pytest.mark.parametrize(
    "origin",
    [
        None, "http://here:1", "https://here:1", "HTTP://Here:1", "https://listed.example", "https://Listed.Example:443",
        "https://proxied.example", "https://proxied.example:443",
    ],
)  # fmt: skip
def test_pages_that_may(origin: str | None) -> None:
    handshake.check_origin(origin, ["here:1", "proxied.example"], ("https://listed.example",))


def test_a_header_is_there_once_or_not_at_all() -> None:
    assert handshake.only("Origin", []) is None
    assert handshake.only("Origin", ["a"]) == "a"
    with pytest.raises(BadRequest, match="2 headers `Origin`"):
        handshake.only("Origin", ["a", "a"])


@pytest.mark.parametrize(
    "origin", ["null", "", "http://[", "http://here:2", "http://here:1.evil.example", "https://listed.example:1"]
)
def test_pages_that_may_not(origin: str) -> None:
    with pytest.raises(Forbidden):
        handshake.check_origin(origin, ["here:1"], ("https://listed.example",))
    handshake.check_origin(origin, ["here:1"], ("*",))


@pytest.mark.parametrize("origin", ["capacitor://localhost", "chrome-extension://abcdef", "tauri://localhost", "null"])
def test_an_origin_that_is_no_web_page_may_where_it_is_listed(origin: str) -> None:
    handshake.check_origin(origin, ["here:1"], (origin,))
    with pytest.raises(Forbidden):
        handshake.check_origin(origin, ["here:1"], ())


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"user_id": "7"}, "invalid_user_id"),
        ({"client_id": "a" * 201}, "too_long"),
        ({"channels": "a" * 201}, "too_long"),
        ({"channels": ",".join(map(str, range(501)))}, "too_long"),
        ({"client_id": "a\n"}, "invalid_text"),
        ({"channels": "a,b\n"}, "invalid_text"),
    ],
)
def test_a_refused_query_is_told_apart_by_code(query: dict[str, str], code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        handshake.connect_request(query, USER)
    assert refused.value.code == code
    assert str(refused.value).endswith(".")


def test_a_query_at_the_limits() -> None:
    channels = ["a" * 200, *map(str, range(499))]
    read = handshake.connect_request({"client_id": "c" * 200, "channels": ",".join(channels)}, USER)
    assert (read.client_id, read.channels) == ("c" * 200, channels)


def test_an_address_that_cannot_be_read() -> None:
    with pytest.raises(BadRequest) as refused:
        handshake.address("http://[/ws")
    assert refused.value.code == "bad_address"
    assert handshake.address(f"{PREFIX}?client_id=&user_id=u") == ({"client_id": "", "user_id": "u"}, False)


def test_a_repeated_header_has_a_code() -> None:
    with pytest.raises(BadRequest) as refused:
        handshake.only("Host", ["a", "b"])
    assert refused.value.code == "repeated_header"


def test_pages_of_this_machine_may_where_that_is_allowed() -> None:
    for origin in ("http://localhost:5173", "https://127.0.0.1", "http://[::1]:80"):
        handshake.check_origin(origin, ["here:1"], (), loopback=True)
        with pytest.raises(Forbidden) as refused:
            handshake.check_origin(origin, ["here:1"], ())
        assert refused.value.code == "forbidden_origin"
        assert origin in str(refused.value)
    for origin in ("http://elsewhere.example", "null"):
        with pytest.raises(Forbidden):
            handshake.check_origin(origin, ["here:1"], (), loopback=True)


@pytest.mark.parametrize(
    "origin",
    [
        "http://here/path", "http://here?query", "http://here#fragment", "http://user@here", "http://here/p?q#f",
        "ftp://here", "http://", "//here",
    ],
)  # fmt: skip
def test_what_is_more_or_less_than_an_origin_may_not(origin: str) -> None:
    with pytest.raises(Forbidden):
        handshake.check_origin(origin, ["here"], ("ftp:", "https://here/"))


def test_a_slash_or_dot_at_the_end_makes_no_difference() -> None:
    handshake.check_origin("http://here", [], ("http://here/",))
    handshake.check_origin("http://here.", [], ("http://here",))
    handshake.check_origin("http://here", ["HERE."], ())


def test_a_refusal_quotes_no_more_than_a_part_of_a_long_origin() -> None:
    with pytest.raises(Forbidden) as refused:
        handshake.check_origin("http://" + "a" * 1000, [], ())
    assert len(str(refused.value)) < 700


# RFC 6455, section 1.3.
RFC = {
    "connection": ["Upgrade"], "sec-websocket-key": ["dGhlIHNhbXBsZSBub25jZQ=="], "sec-websocket-version": ["13"],
}  # fmt: skip
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)


def test_the_example_of_the_rfc_is_accepted() -> None:
    assert handshake.acceptance(RFC) == ACCEPTED + b"\r\n"


@pytest.mark.parametrize("connection", [["keep-alive, UPGRADE"], ["keep-alive", "upgrade"]])
def test_an_upgrade_may_be_one_of_several_options(connection: list[str]) -> None:
    assert handshake.acceptance(RFC | {"connection": connection}) == ACCEPTED + b"\r\n"


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        (["bearer.t, momentum.v1"], b"Sec-WebSocket-Protocol: momentum.v1\r\n"),
        (["other", "momentum.v1"], b"Sec-WebSocket-Protocol: momentum.v1\r\n"),
        (["bearer.t"], b""),
        (["momentum.v10"], b""),
    ],
)
def test_the_subprotocol_is_never_the_token(offered: list[str], selected: bytes) -> None:
    assert handshake.acceptance(RFC | {"sec-websocket-protocol": offered}) == ACCEPTED + selected + b"\r\n"


@pytest.mark.parametrize("name", RFC)
def test_a_handshake_that_lacks_a_header_is_refused(name: str) -> None:
    assert handshake.acceptance({each: values for each, values in RFC.items() if each != name}) is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("connection", ["close"]),
        ("connection", ["upgraded"]),
        ("sec-websocket-key", RFC["sec-websocket-key"] * 2),
        ("sec-websocket-key", [""]),
        ("sec-websocket-key", ["c2hvcnQ="]),
        ("sec-websocket-key", ["dGhlIHNhbXBsZSBub25jZTE3"]),  # 18 bytes
        ("sec-websocket-key", ["dGhlIHNhbXBsZSBub25jZQ"]),
        ("sec-websocket-key", ["dGhlIHNhbXBsZSBub25jZQ==!"]),
        ("sec-websocket-key", ["\xfc"]),
        ("sec-websocket-version", ["8"]),
        ("sec-websocket-version", ["13", "13"]),
    ],
)
def test_a_handshake_with_a_wrong_header_is_refused(name: str, values: list[str]) -> None:
    assert handshake.acceptance(RFC | {name: values}) is None


def test_the_servers_names_are_those_of_host_and_of_each_proxy() -> None:
    assert handshake.hosts_of({"host": ["a"], "x-forwarded-host": ["b, c", "d"]}) == ["a", "b", "c", "d"]
    assert handshake.hosts_of({}) == []
