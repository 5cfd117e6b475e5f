"""An event, and the id by which clients know it.

An id names a position in a history: `<epoch>-<offset>-<mark>`. The mark is made of the event's commit, its LSN and
its time: a database that is restored from a copy gives the same offsets to other events, and the mark tells them
apart. As long as the stream has not passed the snapshot that a connection began with, a offset alone does not say
what the client has seen, and the id carries the snapshot:
`<epoch>-<offset>-<mark>.<xmin>.<xmax>.<xid_xid…>.<lsn>.<incarnation>`. Transaction ids mean something only until
PostgreSQL restarts (one that no WAL record names may be given again), so the incarnation says which run of PostgreSQL
the snapshot is of. To clients an id is opaque.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeGuard

import msgspec

from momentum_sync.database import lsn as lsn_text
from momentum_sync.database.visibility import Snapshot

CACHE_INVALIDATION = "cache_invalidation"
CONTROL = "momentum:control"
"""What the database has to say to the server, not to clients: `revoked`, `policies_changed` and `table_truncated`."""

_TABLES = {
    "momentum_score_created": "daily_engagement_scores",
    "momentum_score_updated": "daily_engagement_scores",
    "momentum_score_deleted": "daily_engagement_scores",
    "intervention_created": "coach_interventions",
    "intervention_updated": "coach_interventions",
    "intervention_deleted": "coach_interventions",
    "push_notification": "momentum_notifications",
    "notification_removed": "momentum_notifications",
    CACHE_INVALIDATION: "daily_engagement_scores",
}

_ID = re.compile(
    r"(?P<epoch>[0-9a-f]{8})-(?P<offset>\d{1,19})-(?P<mark>[0-9a-f]{1,8})"
    r"(?:\.(?P<xmin>\d{1,20})\.(?P<xmax>\d{1,20})\.(?P<xids>[\d_]*)\.(?P<high>[0-9A-F]{1,8})_(?P<low>[0-9A-F]{1,8})"
    r"\.(?P<incarnation>[0-9a-f]{1,8}))?"
)


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_LONGEST_NAME = 200  # of channels, and of users in keys; an index entry has room for 2,700 bytes
_MOST_CACHE_KEYS = 1_000
_FEW_CHANNELS = 8
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')

# What is taken from the WAL: the upper bounds of `momentum.settings`, whose defaults the contract gives. They are
# checked before anything is decoded, so that no limit is the interpreter's.
MAX_EVENT = 16 * 1024 * 1024
MAX_ROWS = 4 * MAX_EVENT
MAX_DEPTH = 256
MAX_CHANNELS = 10_000


class Malformed(ValueError):
    """A logical message under our prefix that `momentum.publish` did not write."""


def is_deeper(json_text: bytes, levels: int) -> bool:
    """Return whether arrays and objects are nested more than so many levels deep. Brackets in strings do not count."""
    if json_text.count(b"[") + json_text.count(b"{") <= levels:  # nearly always
        return False
    level = 0
    for found in _BRACKETS.finditer(json_text):
        token = found.group()
        if token in (b"[", b"{"):
            level += 1
            if level > levels:
                return True
        elif token in (b"]", b"}"):
            level -= 1
    return False


_NO_ROWS = msgspec.Raw()


class _Envelope(msgspec.Struct, gc=False):
    channels: tuple[str, ...]
    event: msgspec.Raw
    rows: msgspec.Raw = _NO_ROWS


class _Head(msgspec.Struct, gc=False):
    """What routing needs of an event. An operator's event may have anything under these names."""

    event_type: object = None
    user_id: object = None
    cache_keys: object = None
    out_of_sight: object = None


_envelope = msgspec.json.Decoder(_Envelope)
_head = msgspec.json.Decoder(_Head)


class Event(msgspec.Struct, frozen=True, gc=False):
    """One thing that happened, in its place.

    `body` is the JSON object as the database wrote it and as clients get it; `event_type`, `user_id` and `cache_keys`
    are read from it. `keys` says where it goes: the channels, with `cache_invalidation` narrowed to the user whose keys
    they are. `committed_at` is seconds since 1970. `rows` is JSON with the versions of the row, as it `was` and `is`,
    where policies must be held against them; `out_of_sight` says that the row is still there, and that only those hear
    of it who could see it and now cannot.
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
    """Where each channel stands in `channels`, for events that have many."""

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
        logged: bool = False,
    ) -> Event:
        """Return an event made of its parts. Malformed if `body` is not the JSON object of an event.

        What was `logged` is never refused: a body that cannot be read any longer gives an event without type and user.
        """
        try:
            head = _head.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if not logged:
                raise Malformed(f"not an event: {error}") from None
            head = _Head()
        user_id = head.user_id if isinstance(head.user_id, str) and len(head.user_id) <= _LONGEST_NAME else None
        cache_keys: tuple[str, ...] = ()
        keys = channels
        if CACHE_INVALIDATION in channels:
            if isinstance(head.cache_keys, list):
                cache_keys = tuple(filter(_is_text, head.cache_keys[:_MOST_CACHE_KEYS]))
            keys = tuple([route(channel, user_id) for channel in channels])
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
            len(body) + sum(map(len, channels)) + (len(rows) if rows else 0) + 500,
            None if len(channels) <= _FEW_CHANNELS else {channel: place for place, channel in enumerate(channels)},
        )

    @property
    def mark(self) -> int:
        """Return the part of the commit that ids carry: bits of its LSN and of its time in microseconds.

        Two branches of a restored database may well have commits at the same LSN; `momentum.mark` is the same in SQL.
        """
        return (self.commit_lsn ^ round(self.committed_at * 1e6)) & 0xFFFF_FFFF

    @property
    def table(self) -> str | None:
        """The table whose row the event speaks of; None for an operator's own event."""
        return _TABLES.get(self.event_type)


Envelope = tuple[tuple[str, ...], bytes, bytes | None]
"""What a logical message carries: where it goes, the event's JSON, and that of versions of its row."""


def open_envelope(content: bytes) -> Envelope:
    """The content of a logical message. Malformed if it is none of ours, or beyond what is taken."""
    if len(content) > MAX_EVENT + MAX_ROWS:
        raise Malformed(f"not an envelope: {len(content)} bytes, more than any that `momentum.publish` writes")
    if is_deeper(content, MAX_DEPTH + 2):
        raise Malformed(f"not an envelope: more than {MAX_DEPTH} levels of JSON")
    try:
        content.decode()  # msgspec does not look inside a Raw
        envelope = _envelope.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not an envelope: {error}") from None
    if b"\\u0000" in content and _NUL.search(content):
        raise Malformed("not an envelope: a text with U+0000, which PostgreSQL cannot hold")
    body = bytes(envelope.event)
    if not body.startswith(b"{"):
        raise Malformed("not an envelope: the event is no object")
    channels = tuple(dict.fromkeys(envelope.channels))
    if not channels:
        raise Malformed("not an envelope: no channel")
    if len(channels) > MAX_CHANNELS:
        raise Malformed(f"not an envelope: {len(channels)} channels, more than any that `momentum.publish` writes")
    for name in channels:
        if len(name) > _LONGEST_NAME or "\0" in name:
            raise Malformed("not an envelope: a channel that PostgreSQL cannot hold or find")
    rows = None if envelope.rows is _NO_ROWS else bytes(envelope.rows)
    if rows is not None and not rows.startswith(b"{"):
        raise Malformed("not an envelope: the rows are no object")
    return channels, body, rows


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def route(channel: str, user_id: str | None) -> str:
    """The key under which a channel's connections stand. Invalidations go to their user alone."""
    return f"{CACHE_INVALIDATION}:{user_id}" if channel == CACHE_INVALIDATION else channel


@dataclass(frozen=True, slots=True)
class SnapshotBoundary:
    """A snapshot that somebody began with, and the place in the WAL behind which it can hold nothing.

    Every transaction that the snapshot sees had written its commit below `upto`. `incarnation` names the run of
    PostgreSQL whose transaction ids these are.
    """

    snapshot: Snapshot
    upto: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a history, as handed to clients.

    `mark` is that of the event with the offset, 0 before the first.
    """

    epoch: str
    offset: int
    mark: int
    seen: SnapshotBoundary | None = None

    @classmethod
    def parse(cls, text: str) -> Position:
        """From the text that a client brought. ValueError if we never gave it out."""
        found = _ID.fullmatch(text)
        if found is None:
            raise ValueError("not an id of an event")
        seen = None
        if found["xmin"] is not None:
            xids = frozenset(int(xid) for xid in found["xids"].split("_") if xid)
            snapshot = Snapshot(int(found["xmin"]), int(found["xmax"]), xids)
            if not 0 < snapshot.xmin <= snapshot.xmax < 2**63 or not all(
                snapshot.xmin <= xid < snapshot.xmax for xid in xids
            ):
                raise ValueError("not a snapshot")
            seen = SnapshotBoundary(
                snapshot, lsn_text.parse(f"{found['high']}/{found['low']}"), int(found["incarnation"], 16)
            )
        return cls(found["epoch"], int(found["offset"]), int(found["mark"], 16), seen)

    def __str__(self) -> str:
        plain = f"{self.epoch}-{self.offset}-{self.mark:x}"
        seen = self.seen
        if seen is None:
            return plain
        snapshot = seen.snapshot
        xids = "_".join(str(xid) for xid in sorted(snapshot.under_way))
        upto = lsn_text.text(seen.upto).replace("/", "_")
        return f"{plain}.{snapshot.xmin}.{snapshot.xmax}.{xids}.{upto}.{seen.incarnation:x}"
