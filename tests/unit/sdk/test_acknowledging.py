"""Acknowledgements of cache keys: messages that a server takes."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from momentum_sync.sdk.acknowledging import Acknowledging
from momentum_sync.sdk.connection import Connection, check_names

FRAME_BYTES = 64 * 1024


class Kept:
    """A connection that keeps its messages."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("length", [10, 500, 100_000])
async def test_keys_of_any_length_are_acknowledged_in_messages_that_fit(length: int) -> None:
    waiting, kept = Acknowledging(), Kept()
    keys = [f"{number:04}".ljust(length, "\u00fc") for number in range(600 if length < 1_000 else 2)]
    waiting.add(keys)
    while waiting:
        await waiting.send(lambda: cast("Connection", kept))
    assert [key for message in kept.sent for key in message["cache_keys"]] == keys
    for message in kept.sent:
        assert len(message["cache_keys"]) <= 500
        assert len(msgspec.json.encode(message)) <= FRAME_BYTES or len(message["cache_keys"]) == 1


def test_a_client_has_no_more_channels_than_a_reconnect_can_name() -> None:
    many = [f"channel:{number}" for number in range(500)]
    assert check_names((name for name in many + many), many) == many
    with pytest.raises(ValueError, match="at most 500 channels"):
        check_names(["one more"], many)
    with pytest.raises(TypeError):
        check_names("channel")
