"""The positions at which the topics of a session begin: that of an earlier session, or the present one."""

from __future__ import annotations

from typing import NamedTuple

from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.gateway.dialects.realtime_resume import LOST, UNKNOWN_REF, Ledger, key_of, proves_reconnect
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.phoenix import Ref, Version

_RESUMED = "Resumed: the changes since this client was last connected follow."
_GAP = "ResumeGap: changes since this client was last connected may be missing; read the data again."
_NO_KEY = "NotResumable: this client has neither a client_id parameter nor a user; after a lost connection, read again."


class Start(NamedTuple):
    """The beginning of a topic, and the message to the app about it."""

    position: Position
    said: str

    @property
    def is_resumed(self) -> bool:
        """Return whether the client continues where it was."""
        return self.said == _RESUMED


class Places:
    """The places of one session. Its methods raise Unavailable if the database does not confirm a write.

    Args:
        rows: the gateway.
        session: the number of the session.
        name: the client's `client_id`.
        version: of its serializer.

    Attributes:
        ledger: the session's positions.
    """

    __slots__ = ("_has_ended", "_has_gap", "_has_lost", "_is_settled", "_name", "_rows", "_version", "ledger")

    def __init__(self, rows: RowServices, session: int, name: str | None, version: Version) -> None:
        self.ledger = Ledger(session)
        self._rows = rows
        self._name = name
        self._version = version
        self._is_settled = False
        self._has_gap = False
        self._has_lost = False
        self._has_ended = False

    async def start(
        self, topic: str, ref: Ref, identity: Identity, head: Position, *, is_alone: bool
    ) -> Start | None:  # fmt: skip
        """Return where a topic begins, once that is in the session's record.

        Args:
            topic: its name.
            ref: `ref` of its join.
            identity: its caller.
            head: where it begins if there is nothing to continue.
            is_alone: whether no other topic is joined. Else the key stays: the next socket joins those, too.

        Returns:
            None if the client has a newer socket.
        """
        ledger = self.ledger
        # supabase-js of 2025 sends an empty `ref` if the connection breaks while its join is pending, so it reconnects.
        number = UNKNOWN_REF if ref == "" else ledger.saw(ref)
        key = key_of(self._name, identity)
        has_signed_in = (
            is_alone and ledger.key is not None and not ledger.key.has_user and key is not None and key.has_user
        )
        if has_signed_in and not await self.rename(topic, identity):  # else the client's next socket is not recognized
            return None
        before = ledger.cursors.get(topic)
        if ledger.key is None:
            if key is not None and number is not None:
                # Without a join before, this one settles whose socket it is. After others, which had no key, somebody
                # has signed in: then there is nothing to continue.
                first = 0 if self._is_settled else number
                verdict = await self._rows.claim(
                    ledger, key, first, topic, head, is_reconnect=proves_reconnect(first, self._version)
                )
                if verdict.is_late:
                    return None
                before, self._has_gap = verdict.cursors.get(topic, before), verdict.has_gap
                self._has_lost = verdict.has_lost
                # A database that has gone back to an earlier state has the record of then, without later topics. One
                # position of the present epoch shows that the record is newer; others may be of topics left behind.
                places = verdict.cursors.values()
                self._has_ended = LOST in places or (bool(places) and all(each.epoch != head.epoch for each in places))
            self._is_settled = True
        has_gap = self._has_gap or self._has_ended
        start = Start(head, _GAP if has_gap else "" if ledger.key is not None else _NO_KEY)
        if before is not None:
            start = await self._from(before, head)
        # The socket may be lost before the client learns of the gap; so the record moves only with its next pong.
        has_lost = start == Start(head, _GAP) and (before is not None or self._has_lost or self._has_ended)
        recorded = LOST if has_lost else start.position
        if ledger.cursors.get(topic) != recorded:
            ledger.begin(topic, recorded)
            if ledger.key is not None and not await self._rows.save(ledger):
                return None
        return start

    async def _from(self, before: Position, head: Position) -> Start:
        """Return a start at a position, or at the head if not everything that follows the position is there."""
        try:
            await self._rows.verify(before)
        except ResumeRefused:
            return Start(head, _GAP)
        return Start(before, _GAP if self._has_gap else _RESUMED)

    async def again(self, topic: str, identity: Identity, head: Position, *, is_known: bool) -> Start | None:
        """Return where a topic goes on that is joined again on the same socket, by a caller who may have signed in.

        That is the last position that the client has confirmed. It may have given up the join before, while this server
        worked on it. Then the connection is still behind the head, and it is unknown how much the client has taken.

        Args:
            topic: its name.
            identity: its caller.
            head: where it goes on if events after its position are not there any longer.
            is_known: whether the client has confirmed the reply to the join before.

        Returns:
            None if the client has a newer socket.
        """
        # A pong of an earlier ping may be read after this join, and confirms nothing about the answer to it.
        self.ledger.withdraw(topic)
        before = self.ledger.cursors.get(topic)
        if not await self.rename(topic, identity):
            return None
        if before is None:
            return Start(head, "")
        start = await self._from(before, head)
        return Start(start.position, "") if is_known and start.is_resumed else start

    async def rename(self, topic: str, identity: Identity) -> bool:
        """Have the session be found by a caller that may have signed in: the next joins will be theirs.

        Returns:
            Whether the session still exists.
        """
        ledger, key = self.ledger, key_of(self._name, identity)
        if key is None or key == ledger.key:
            return True
        if ledger.key is None:
            position = ledger.cursors.get(topic, self._rows.position)
            return not (await self._rows.claim(ledger, key, 0, topic, position, is_reconnect=False)).is_late
        return await self._rows.rename(ledger, key)
