"""Everything that a client knows and stores of its user: position, state, cache, outbox, events not read yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from momentum_sync.domain.messages import Momentum
from momentum_sync.errors import ClientError
from momentum_sync.sdk.cache import Cache
from momentum_sync.sdk.outbox import Outbox
from momentum_sync.sdk.protocol import NOBODY, Output, Protocol, State
from momentum_sync.sdk.state import UserState
from momentum_sync.sdk.store import Document, Keeper, Store
from momentum_sync.sdk.stream import Stream


class Replica:
    """The data of one user. `report` receives failures of the store, without which the client continues."""

    def __init__(
        self,
        store: Store | None,
        user_id: str | None,
        clock: Callable[[], float],
        report: Callable[[ClientError], None],
    ) -> None:
        self._user_id = user_id
        self._clock = clock
        self._report = report
        self._tried = asyncio.Event()  # set when the store has been read, or the client has ended
        self._over = False
        self._loads = 0
        self._ahead = 0.0
        self._pending: Document | None = None  # stored data of a user not known yet
        self.protocol = Protocol(user_id)
        self.keeper = Keeper(store, user_id, clock)
        self.stream = Stream(self.keeper.settle)
        self.outbox = Outbox()
        self.cache = Cache(clock, self.keep)

    @property
    def loaded(self) -> bool:
        """Return whether the store has been read; before that it must not be overwritten."""
        return self.keeper.loaded

    @property
    def state(self) -> State:
        """Return the present state. Notifications marked as read are not in it, even before the server knows."""
        return self.protocol.known(without=self.outbox)

    def keep(self) -> None:
        """Note a change to be stored; it is saved within a second."""
        self.keeper.changed = True

    async def load(self) -> None:
        """Take over the stored data of this user. If the store cannot be read, `load_again` retries."""
        document = None
        try:
            document = await self.keeper.load(self._user_id)
        except ClientError as error:
            self._report(error)
        if self._over:
            return
        self._pending = document
        if self._user_id is not None:
            self._take_over(self._user_id)
        self._tried.set()
        await self.stream.tell()

    async def load_again(self) -> None:
        """Read a store that could not be read before, and merge it with the data received since."""
        self._loads += 1
        if self.loaded or self._loads & (self._loads - 1):  # at the 1st, 2nd, 4th, 8th … request
            return
        try:
            document = await self.keeper.load(self._user_id)
        except ClientError as error:
            self._report(error)
            return
        # Position and state from the connection are newer; only cached values and unsent marks exist nowhere else.
        if document is not None and document.user_id == self.protocol.user_id and not self._over:
            self.cache.restore(document.cache)
            self.outbox.restore(document.outbox)
            self.keep()

    def end(self) -> None:
        """Release all callers that wait for the store."""
        self._tried.set()

    def _take_over(self, user_id: str) -> bool:
        """Continue from the stored position of this user. Data of another user are neither shown nor kept."""
        document = self._pending
        if document is None or document.user_id != user_id:
            return False
        self._pending = None
        self.keeper.take_over(document)
        self.protocol.restore(document.user_id, self.keeper.last_event_id, document.known_at)
        if document.state is not None:
            self.protocol.state.begin(document.state)
        self.cache.restore(document.cache)
        self.outbox.restore(document.outbox)
        return True

    async def save(self) -> bool:
        """Save everything that the program has processed, once the store has been read. Return whether it is saved."""
        await self._tried.wait()
        if not self.loaded or self._over:
            return False
        try:
            await self.keeper.save(self._describe)
        except ClientError as error:
            self._report(error)
            return False
        return self.protocol.user_id is not None

    def _describe(self, state: UserState, last_event_id: str | None) -> Document | None:
        if self._over or self.protocol.user_id is None:
            return None
        known_at = self._clock() if self.protocol.status == "live" else self.protocol.since
        # Events that wait for the program are not in the stored state, which is then only as current as its last event.
        return Document(
            user_id=self.protocol.user_id,
            last_event_id=last_event_id,
            known_at=known_at if self.stream.empty else self.keeper.settled_at,
            state=state.saved() if last_event_id is not None else None,
            cache=dict(self.cache.saved()),
            outbox=list(self.outbox.waiting),
        )

    async def close(self) -> None:
        """Release the store."""
        try:
            await self.keeper.close()
        except ClientError as error:
            self._report(error)

    async def clear(self) -> None:
        """Delete everything, here and in the store."""
        # Set first, so that a write in the queue stores nothing more.
        self._over = True
        self._pending = None
        self.protocol = Protocol(self._user_id)
        self.outbox = Outbox()
        self.cache.forget()
        self.stream.forget()
        try:
            await self.keeper.clear()
        except ClientError as error:
            self._report(error)
            raise

    def opened(self, at: float) -> None:
        """Note that the socket is open. `at` is monotonic seconds."""
        self._ahead = self._clock() - at
        self.protocol.opened(self._clock(), at)

    def frozen(self, at: float, patience: float) -> bool:
        """Return whether nothing arrived for longer than `patience` seconds, or the machine slept that long.

        A monotonic clock may stand still while the machine sleeps; the wall clock then runs ahead of it.
        """
        return self._clock() - at - self._ahead > patience or self.protocol.frozen(at, patience)

    def receive(self, text: str | bytes, at: float) -> list[Output]:
        """Handle a message; raises as `Protocol.receive`. `at` is monotonic seconds.

        A heartbeat may advance the position of a program that has processed all events.
        """
        outputs = self.protocol.receive(text, self._clock(), at)
        position = self.protocol.position
        if not outputs and position is not None and self.stream.empty:
            self.keeper.advance(position)
        return outputs

    def is_for(self, user_id: str | None) -> None:
        """Prepare for the user that the token claims: data of another user are dropped at once."""
        wanted = self._user_id or user_id
        if wanted is None:
            if self.protocol.user_id is None:
                self._take_over(NOBODY)  # as of `service_role`; a token may also not name its user
            return
        if self.protocol.user_id is None:
            if not self._take_over(wanted):
                self.protocol.user_id = self.protocol.state.user_id = self.keeper.state.user_id = wanted
        elif self.protocol.user_id != wanted:
            self.protocol = Protocol(wanted)
            self._start_over(wanted)

    def greeted(self) -> None:
        """Note the user that the server confirmed."""
        user_id = self.protocol.user_id or ""
        pending, self._pending = self._pending, None
        if pending is not None and pending.user_id == user_id:  # the token did not name its user
            self.cache.restore(pending.cache)
            self.outbox.restore(pending.outbox)
        if self.keeper.state.user_id not in ("", user_id):
            self._start_over(user_id)
        self.keeper.state.user_id = user_id

    def forget(self) -> None:
        """Delete everything but the user's own changes: the caller may not have it."""
        user_id = self.protocol.user_id
        if user_id is not None:
            self.protocol = Protocol(user_id)
            self._let_go(user_id)

    def _start_over(self, user_id: str) -> None:
        """Start empty for another user."""
        # Marks of one user must not be sent with another user's token.
        self.outbox = Outbox()
        self._let_go(user_id)

    def _let_go(self, user_id: str) -> None:
        self.keeper.start_over(user_id)
        self.cache.forget()
        self.stream.forget()

    def read_again(self, momentum: Momentum) -> bool:
        """Take over a momentum that was read; False if it may be older than the last event."""
        taken = self.protocol.state.read_again(momentum)
        if taken:
            self.keeper.read_again(momentum)
        return taken

    def read(self, notification_id: str, *, gone: bool = True) -> None:
        """Remove a mark that the server has answered. The notification stays read before its event arrives."""
        self.outbox.done(notification_id)
        if gone:
            self.protocol.state.forget_notification(notification_id)
            self.keeper.state.forget_notification(notification_id)
        self.keep()
