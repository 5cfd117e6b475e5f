"""A published event at its place in the log."""

from __future__ import annotations

from collections.abc import Set
from typing import TypeGuard

import msgspec

from momentum_sync.eventlog.envelope import MAX_NAME, ROWS, Malformed
from momentum_sync.eventlog.position import mark_of

CONTROL = "momentum:control"
"""The channel on which the database addresses the server: `revoked`, `policies_changed`, `table_truncated`."""

PRIVATE_TOPIC = "topic:"
PUBLIC_TOPIC = "public_topic:"
"""What the channels of topics of Supabase's protocol begin with: private ones, and those that anybody may join."""

_FEW_CHANNELS = 8


class _Head(msgspec.Struct, gc=False):
    """The fields of an event that routing reads. An operator's event may hold any type under these names."""

    event_type: object = None
    user_id: object = None
    cache_keys: object = None
    out_of_sight: object = None


_head = msgspec.json.Decoder(_Head)


class Event(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A published event. The broker carries it as an array, which is a quarter smaller and faster to decode.

    Attributes:
        offset: dense number within the epoch, counted from 1.
        commit_lsn: LSN of the transaction's commit record.
        commit_index: index of the event among the messages of its transaction, from 0.
        xid: 64-bit transaction id.
        committed_at: seconds since 1970.
        channels: the channels it was published on.
        body: the JSON object as the database wrote it and as clients get it.
        event_type: `event_type` of the body; empty if it has none.
        user_id: `user_id` of the body, if it is a string.
        cache_keys: `cache_keys` of the body, on a channel that is delivered per user.
        keys: where subscribers are looked up: the channels, of which those that are delivered per user name the user.
        rows: JSON with the versions of the row, `was` and `is`, for policies that must be evaluated on them.
        out_of_sight: the row still exists; only callers that could see it before and cannot now receive the event.
        size: bytes of memory, estimated.
        places: index of each channel in `channels`, for events on many channels.
    """

    offset: int
    commit_lsn: int
    commit_index: int
    xid: int
    committed_at: float
    channels: tuple[str, ...]
    body: bytes
    event_type: str
    user_id: str | None
    cache_keys: tuple[str, ...]
    keys: tuple[str, ...]
    rows: bytes | None
    out_of_sight: bool
    size: int
    places: dict[str, int] | None = None

    @classmethod
    def build(
        cls,
        *,
        offset: int,
        place: tuple[int, int],
        xid: int,
        committed_at: float,
        channels: tuple[str, ...],
        body: bytes,
        rows: bytes | None = None,
        per_user: Set[str] = frozenset(),
        logged: bool = False,
    ) -> Event:
        """Build an event from its parts.

        Args:
            offset: its offset.
            place: LSN of the commit, and index in the transaction.
            xid: 64-bit transaction id.
            committed_at: seconds since 1970.
            channels: where it was published.
            body: the JSON object.
            rows: the JSON of its row's versions.
            per_user: channels that deliver an event only to the connections of its `user_id`.
            logged: the event comes from the log, which must never be refused: a body that cannot be read any longer
                gives an event without type and user.

        Raises:
            Malformed: `body` is not the JSON object of an event.
        """
        try:
            head = _head.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if not logged:
                raise Malformed(f"not an event: {error}") from None
            head = _Head()
        user_id = head.user_id if isinstance(head.user_id, str) and len(head.user_id) <= MAX_NAME else None
        cache_keys: tuple[str, ...] = ()
        keys = channels
        if not per_user.isdisjoint(channels):
            if isinstance(head.cache_keys, list):
                cache_keys = tuple(filter(_is_text, head.cache_keys))
            keys = tuple([key_of(channel, user_id, per_user) for channel in channels])
        # The 500 bytes of the size stand for the Python objects around the event's data.
        return cls(
            offset,
            place[0],
            place[1],
            xid,
            committed_at,
            channels,
            body,
            head.event_type if isinstance(head.event_type, str) else "",
            user_id,
            cache_keys,
            keys,
            rows,
            head.out_of_sight is True,
            len(body) + sum(map(len, channels)) + (len(rows) if rows else 0) + _size_of(cache_keys) + 500,
            None if len(channels) <= _FEW_CHANNELS else {channel: place for place, channel in enumerate(channels)},
        )

    @property
    def mark(self) -> int:
        """Return the mark that positions at this event carry."""
        return mark_of(self.commit_lsn, self.committed_at)


def _size_of(texts: tuple[str, ...]) -> int:
    """Return the bytes of memory that texts take, each with its object's header and its place in the tuple."""
    return sum(map(len, texts)) + 57 * len(texts)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def row_channel(relation: int) -> str:
    """Return the channel of the changes of a relation's rows, which only Supabase's protocol delivers."""
    return f"{ROWS}{relation}"


def is_row_channel(channel: str) -> bool:
    """Return whether changes of a table's rows are on a channel."""
    return channel.startswith(ROWS)


def relation_of(event: Event) -> int | None:
    """Return the relation of the row that an event reports; None for an event of another kind."""
    channel = event.channels[0] if event.channels else ""
    return int(channel.removeprefix(ROWS)) if channel.startswith(ROWS) else None


def topic_channel(topic: str, *, is_private: bool) -> str:
    """Return the channel of a topic's messages from the database. The topic has no `realtime:`."""
    return (PRIVATE_TOPIC if is_private else PUBLIC_TOPIC) + topic


def key_of(channel: str, user_id: str | None, per_user: Set[str]) -> str:
    """Return the key under which a channel's subscribers are found: one a user, where it is delivered per user."""
    return f"{channel}:{user_id}" if channel in per_user else channel
