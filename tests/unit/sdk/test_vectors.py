"""The Python SDK by the test vectors in `spec/vectors`, which the JavaScript SDK's tests read, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from momentum_sync import errors
from momentum_sync.domain.messages import PROTOCOL, InitialState, Momentum
from momentum_sync.sdk.protocol import Answer, Event, Invalidated, Output, Protocol, Resync, pause, verdict
from momentum_sync.sdk.state import Saved, UserState
from momentum_sync.wire import messages
from momentum_sync.wire.close import Close

VECTORS = Path(__file__).parents[3] / "spec" / "vectors"

DECODER = messages.ClientMessages(PROTOCOL.clients)


def cases(name: str) -> list[Any]:
    found: list[Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=str(case.get("name", index))) for index, case in enumerate(found)]


def bare(value: Any) -> Any:
    """Return the object without null fields, which may be absent."""
    if isinstance(value, dict):
        return {name: bare(inner) for name, inner in value.items() if inner is not None}
    return [bare(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("case", cases("state"))
def test_state(case: dict[str, Any]) -> None:
    state = UserState(case["user_id"])
    state.begin(
        msgspec.convert(
            {"last_event_id": "", "timestamp": "", "type": "initial_state", **case["snapshot"]}, InitialState
        )
    )
    for step in case["steps"]:
        if "event" in step:
            state.fold(step["event"])
        else:
            assert state.read_again(msgspec.convert(step["read"], Momentum)) is step["taken"]
    assert bare(msgspec.to_builtins(state.saved())) == bare({**case["state"], "unsure": case["unsure"]})
    assert state.unsure is case["unsure"]
    again = UserState(case["user_id"])
    again.begin(msgspec.json.decode(msgspec.json.encode(state.saved()), type=Saved))
    assert again.saved() == state.saved()


def described(output: Output) -> dict[str, Any]:
    match output:
        case Event():
            return {"kind": "event", "id": output.id}
        case Resync():
            return {"kind": "resync", "id": output.id, "reason": output.reason}
        case Invalidated():
            return {"kind": "invalidated", "id": output.id, "keys": list(output.keys)}
        case Answer():
            return {"kind": "answer"}


def step(following: Protocol, step: dict[str, Any]) -> None:
    match step:
        case {"connect": expected}:
            assert following.connecting() == expected
        case {"opened": at}:
            following.opened(at, at)
        case {"channels": expected}:
            assert list(following.channels) == expected
        case {"lost": at}:
            following.lost(at)
        case {"ended": at}:
            following.ended(at)
        case {"frozen": {"at": at, "patience": patience}, "is": expected}:
            assert following.frozen(at, patience) is expected
        case {"receive": message, "at": at, "error": error}:
            with pytest.raises(getattr(errors, error)):
                following.receive(message if isinstance(message, str) else json.dumps(message), at, at)
        case {"receive": message, "at": at, "outputs": outputs}:
            assert [described(one) for one in following.receive(json.dumps(message), at, at)] == outputs
        case {"expect": expected}:
            known = {
                "status": following.status, "last_event_id": following.last_event_id, "since": following.since
            }  # fmt: skip
            assert known == expected
        case _:
            raise AssertionError(f"no step: {step}")


@pytest.mark.parametrize("case", cases("following"))
def test_following(case: dict[str, Any]) -> None:
    following = Protocol(None)
    if case["saved"] is not None:
        following.restore(case["saved"]["user_id"], case["saved"]["last_event_id"], case["saved"]["since"])
    for each in case["steps"]:
        step(following, each)


@pytest.mark.parametrize("case", cases("close"))
def test_close(case: dict[str, Any]) -> None:
    assert verdict(case["code"]) == case["verdict"]


def test_every_close_code_of_the_server_has_its_vector() -> None:
    verdicts = {case.values[0]["code"]: case.values[0]["verdict"] for case in cases("close")}
    for close in Close:
        assert verdicts[close.code] == close.verdict


@pytest.mark.parametrize("case", cases("backoff"))
def test_backoff(case: dict[str, Any]) -> None:
    assert pause(case["failures"], case["chance"]) == pytest.approx(case["seconds"])


@pytest.mark.parametrize("case", cases("messages"))
def test_messages(case: dict[str, Any]) -> None:
    """The server reads messages as a client sends them."""
    text = case.get("text") or json.dumps(case["message"])
    if "code" in case:
        with pytest.raises(messages.BadMessage) as raised:
            DECODER.decode(text.encode())
        assert raised.value.code == case["code"]
    else:
        decoded = DECODER.decode(text.encode())
        assert decoded.__struct_config__.tag == case["message"]["type"]
