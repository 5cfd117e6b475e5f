"""Resume for Supabase's clients, which send no position: acknowledged pings.

Every WebSocket library answers pings, in stream order. A ping that follows some events names a position; its
pong says that the client's library has everything up to there. The position is kept for the session, which is one
accepted socket, and a rejoin on another socket continues it. No official client sends an id of its own, but `ref`
continues across the sockets of one client object. A new object begins at 1, so a first `ref` above 1 means a reconnect;
but supabase-js of 2026 begins at 6 or more, because it numbers its own callbacks, too.

The rules and why each is needed: ARCHITECTURE.md, "Resume of Supabase's clients".
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from uuid import UUID

import msgspec

from momentum_sync.eventlog.position import Position
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.phoenix import Version

LOST = Position("00000000", 0, 0)
"""The position of a client that is told of a gap, until it has confirmed that: resumed from here, it is told again."""

_FIRST_REF = 1  # of a client object's first frame
UNKNOWN_REF = 2**53
"""Stands for the empty `ref` of a repeated join. It is above every `ref`: any earlier session may be its client's."""

_FIRST_REFS = range(6, 251)  # of supabase-js of 2026: 4, and up to 2 for each of the topics, of which there are 100
_MOST_PINGS = 32  # unanswered, with their positions; a client that answers none of these is cut off before long


class Key(msgspec.Struct, frozen=True):
    """The identity under which a client's sessions are found.

    Attributes:
        digest: of the client's name.
        is_exact: whether it names one client object; otherwise several tabs or devices may share it.
        has_user: whether it names a user.
        user_id: the user, if that is one of the database's.
    """

    digest: str
    is_exact: bool
    has_user: bool = True
    user_id: UUID | None = None


def key_of(client_id: str | None, identity: Identity) -> Key | None:
    """Return a client's key: its `client_id`, else the token's session, else its user; None without any.

    A presence key is none, because each channel may have another. Users never share keys. Callers without a user do, if
    they have the same `client_id`, so it has to be as random as a secret.
    """
    claims = msgspec.json.decode(identity.claims, type=dict[str, object])
    session_id = claims.get("session_id")
    user = str(identity.subject or claims.get("sub") or "")
    for kind, name in (("client_id", client_id), ("session", session_id), ("user", user)):
        if isinstance(name, str) and name:
            text = msgspec.json.encode([kind, identity.role, user, name])
            return Key(hashlib.sha256(text).hexdigest()[:32], kind == "client_id", bool(user), identity.subject)
    return None


class Record(msgspec.Struct, frozen=True):
    """A session as it is known: in memory, or as it was last saved.

    Attributes:
        session: its number; sockets that were accepted later have higher ones.
        ref: the highest `ref` that was seen on it.
        cursors: positions by topic, up to which the client has everything.
        is_recent: whether it may still be continued under a key that several clients share.
    """

    session: int
    ref: int
    cursors: Mapping[str, Position]
    is_recent: bool = True


class Verdict(msgspec.Struct, frozen=True):
    """The decision of the first join on a socket, which holds for all joins on it.

    Attributes:
        is_late: the client has a newer socket, and this one is to be closed.
        claimed: sessions that this one continues; their sockets are closed.
        removed: sessions without a record from now on.
        cursors: where the topics go on.
        has_gap: the client has missed changes that cannot be distinguished from those it had.
    """

    is_late: bool = False
    claimed: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    cursors: Mapping[str, Position] = {}
    has_gap: bool = False

    @property
    def has_lost(self) -> bool:
        """Return whether the gap is certain: there were sessions, which cannot be continued."""
        return self.has_gap and bool(self.claimed)


def proves_reconnect(ref: int, version: Version) -> bool:
    """Return whether the `ref` of a socket's first join proves that its client has had another socket."""
    return ref > _FIRST_REF and (version is Version.V1 or ref not in _FIRST_REFS)


def settle(
    session: int, ref: int, key: Key, records: Sequence[Record], answering: Set[int] = frozenset(), *,
    is_reconnect: bool = True,
) -> Verdict:  # fmt: skip
    """Decide whether the first join on a socket belongs to a reconnect, and which sessions it continues.

    Args:
        session: the number of the new session.
        ref: `ref` of the join.
        key: the client's key, of which `records` are the others.
        records: the sessions.
        answering: sessions whose socket has answered a ping since the join: they are other clients.
        is_reconnect: whether a `ref` above 1 is proof of one, also without a record.
    """
    if key.is_exact and any(record.session > session for record in records):
        return Verdict(is_late=True)
    found = [
        record for record in records if may_continue(session, ref, key, record) and record.session not in answering
    ]
    if not found:
        # A page that was loaded again: nothing from before it is of use to it. Or the client was away for so long that
        # its record has expired; or its first attempts to connect have failed, which looks the same.
        removed = tuple(record.session for record in records) if key.is_exact else ()
        return Verdict(removed=removed, has_gap=ref > _FIRST_REF and is_reconnect)
    used = found if key.is_exact else [record for record in found if record.is_recent]
    # Where several clients share the key, nothing says which of these is the one: it is given too much.
    cursors = lowest(record.cursors for record in used)
    names = tuple(record.session for record in found)
    # Of the clients that have been away for long, one record is enough to tell them so.
    old = sorted((record for record in records if not record.is_recent), key=lambda record: record.ref)
    return Verdict(
        claimed=names,
        removed=names if key.is_exact else tuple(record.session for record in old[1:]),
        cursors=cursors,
        has_gap=len(used) < len(found),
    )


def may_continue(session: int, ref: int, key: Key, record: Record) -> bool:
    """Return whether the first join on a socket, by its `ref`, may be the reconnect of the client of a record.

    A higher `ref` may have been seen before: a client may first repeat a frame that it could not send, as supabase-py
    does. Under a shared key, an old record needs a lower `ref`, because it probably belongs to another client.
    """
    if ref <= _FIRST_REF or record.session > session:
        return False
    return record.ref < ref or key.is_exact or record.is_recent


def lowest(each: Iterable[Mapping[str, Position]]) -> dict[str, Position]:
    """Return the lowest position of each topic; `LOST` where they belong to several epochs.

    At least one of those epochs has ended, and nothing says that the client's position is not in that one. Offsets of
    different epochs are not comparable: after a restore from a copy, those of the new epoch begin below.
    """
    found: dict[str, Position] = {}
    for cursors in each:
        for topic, position in cursors.items():
            other = found.setdefault(topic, position)
            if other.epoch != position.epoch:
                found[topic] = LOST
            elif position.offset < other.offset:
                found[topic] = position
    return found


class Ledger:
    """A session's positions, moved by pongs.

    Args:
        session: its number.

    Attributes:
        key: the client's key; None until the first join, and for a client without any.
        ref: the highest `ref` that was seen.
        cursors: positions by topic.
        changes: counts changes, to know when to save.
        pinged: the number of the last ping.
    """

    __slots__ = ("_pings", "changes", "cursors", "key", "pinged", "ref", "session")

    def __init__(self, session: int) -> None:
        self.session = session
        self.key: Key | None = None
        self.ref = 0
        self.cursors: dict[str, Position] = {}
        self.changes = 0
        self.pinged = 0
        self._pings: deque[tuple[int, Position | None, tuple[str, ...]]] = deque(maxlen=_MOST_PINGS)

    def saw(self, ref: object) -> int | None:
        """Take the `ref` of a frame. Return it as a number; None if it is none."""
        try:
            number = int(str(ref))
        except ValueError:
            return None
        if not 0 <= number < 2**53:
            return None
        self.ref = max(self.ref, number)
        return number

    def ended(self) -> None:
        """Note that the socket is closed: the highest `ref` has to be saved, too."""
        self.changes += 1

    def begin(self, topic: str, position: Position) -> None:
        """Note that a topic was joined at a position."""
        self.cursors[topic] = position
        self.changes += 1

    def withdraw(self, topic: str) -> None:
        """Have the pings so far say nothing about a topic, because it is joined again."""
        self._pings = deque(
            (
                (number, position, tuple(each for each in topics if each != topic))
                for number, position, topics in self._pings
            ),
            maxlen=_MOST_PINGS,
        )

    def end(self, topic: str) -> None:
        """Forget a topic that the client has left."""
        self.withdraw(topic)
        if self.cursors.pop(topic, None) is not None:
            self.changes += 1

    def rename(self, key: Key | None) -> None:
        """Go on under another key."""
        self.key = key
        self.changes += 1

    def ping(self, position: Position | None, joined: Iterable[str]) -> bytes:
        """Return the payload of a ping that is written now."""
        self.note_ping(self.pinged + 1, position, tuple(joined))
        return str(self.pinged).encode()

    def note_ping(self, number: int, position: Position | None, joined: tuple[str, ...]) -> None:
        """Note a ping, before which everything up to a position was written to these topics.

        Args:
            number: its number, above that of the last one.
            position: the position; without one the pong confirms only that the replies to the joins have come.
            joined: the topics.
        """
        self.pinged = number
        self._pings.append((number, position, joined))

    def pong(self, payload: bytes, *, moves: bool = True) -> tuple[int, Set[str]]:
        """Take a pong. Return its ping's number, 0 for none, and the topics that were joined when that was written.

        One that does not move the positions leaves them, and these topics, to a later pong.
        """
        number = int(payload) if payload.isdigit() and len(payload) < 16 else 0
        confirmed: set[str] = set()
        if number not in [each for each, _, _ in self._pings]:
            return 0, confirmed
        if not moves:
            return number, confirmed
        # RFC 6455, section 5.5.3: a pong may answer several pings at once.
        while self._pings:
            each, position, topics = self._pings.popleft()
            if position is not None:
                self._advance(topics, position)
            confirmed.update(topics)
            if each == number:
                break
        return number, confirmed

    def _advance(self, topics: Iterable[str], position: Position) -> None:
        for topic in topics:
            before = self.cursors.get(topic)
            if before is not None and (before.epoch != position.epoch or position.offset > before.offset):
                self.cursors[topic] = position
                self.changes += 1

    def record(self) -> Record:
        """Return the session as it is known now."""
        return Record(self.session, self.ref, dict(self.cursors))
