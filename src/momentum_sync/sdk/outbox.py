"""What the program has done and the server does not know yet: kept in order, sent a few at a time, each once."""

from __future__ import annotations

from collections.abc import Iterable

_A_SECOND = 10  # servers take 20 messages a second


class Outbox:
    """Notifications that were marked as read, until the server has said so."""

    def __init__(self) -> None:
        self._waiting: dict[str, None] = {}
        self._under_way: set[str] = set()
        self._second = 0.0
        self._left = _A_SECOND

    def __contains__(self, notification_id: object) -> bool:
        return notification_id in self._waiting

    @property
    def waiting(self) -> tuple[str, ...]:
        """What the server has not answered, in the order in which it was done."""
        return tuple(self._waiting)

    def add(self, notification_id: str) -> None:
        """Done now; what waits already waits on."""
        self._waiting.setdefault(notification_id)

    def take(self, now: float) -> list[str]:
        """What is to be sent now, and then is under way until it is `done` or the connection `lost`.

        No more than ten a second; `now` is in seconds.
        """
        if now - self._second >= 1.0:
            self._second, self._left = now, _A_SECOND
        taken = [one for one in self._waiting if one not in self._under_way][: self._left]
        self._left -= len(taken)
        self._under_way.update(taken)
        return taken

    def done(self, notification_id: str) -> None:
        """The server has answered, and will not say otherwise."""
        self._waiting.pop(notification_id, None)
        self._under_way.discard(notification_id)

    def later(self, notification_id: str) -> None:
        """The server could not do it now."""
        self._under_way.discard(notification_id)

    def lost(self) -> None:
        """Nobody knows what became of what was under way: it is sent again, which changes nothing if it had been."""
        self._under_way.clear()

    def restore(self, waiting: Iterable[str]) -> None:
        """What a store had kept, before what was added since."""
        self._waiting = dict.fromkeys([*waiting, *self._waiting])
