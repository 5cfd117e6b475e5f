"""Changes that the server does not have yet: kept in order, sent a few at a time, each once."""

from __future__ import annotations

from collections.abc import Iterable

_A_SECOND = 10  # servers accept 20 messages per second


class Outbox:
    """Notifications marked as read, until the server has confirmed them."""

    def __init__(self) -> None:
        self._waiting: dict[str, None] = {}
        self._under_way: set[str] = set()
        self._second = 0.0
        self._left = _A_SECOND

    def __contains__(self, notification_id: object) -> bool:
        return notification_id in self._waiting

    @property
    def waiting(self) -> tuple[str, ...]:
        """Return the unconfirmed marks, oldest first."""
        return tuple(self._waiting)

    def add(self, notification_id: str) -> None:
        """Add a mark; one that waits already keeps its place."""
        self._waiting.setdefault(notification_id)

    def take(self, now: float) -> list[str]:
        """Return marks to send now. They are under way until `done`, `later` or `lost`.

        At most ten per second are returned; `now` is in seconds.
        """
        if now - self._second >= 1.0:
            self._second, self._left = now, _A_SECOND
        taken = [one for one in self._waiting if one not in self._under_way][: self._left]
        self._left -= len(taken)
        self._under_way.update(taken)
        return taken

    def done(self, notification_id: str) -> None:
        """Remove a mark that the server has confirmed or refused for good."""
        self._waiting.pop(notification_id, None)
        self._under_way.discard(notification_id)

    def later(self, notification_id: str) -> None:
        """Return a mark to the queue, because the server could not handle it now."""
        self._under_way.discard(notification_id)

    def lost(self) -> None:
        """Return all marks under way to the queue. The server may have them; repeating is harmless."""
        self._under_way.clear()

    def restore(self, waiting: Iterable[str]) -> None:
        """Add the marks of a store, before those added since."""
        self._waiting = dict.fromkeys([*waiting, *self._waiting])
