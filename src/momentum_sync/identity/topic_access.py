"""A caller's rights on a topic of Supabase's protocol.

On a private topic the policies of `realtime.messages` decide, separately for broadcasts and for presence: a SELECT
policy about getting them, an INSERT policy about sending. Source: Supabase, "Realtime Authorization".
"""

from __future__ import annotations

from typing import Final, NamedTuple

BROADCAST: Final = "broadcast"
PRESENCE: Final = "presence"
EXTENSIONS: Final = (BROADCAST, PRESENCE)
"""The values of `realtime.messages.extension`."""


class TopicAccess(NamedTuple):
    """A caller's rights on a topic.

    Attributes:
        reads: the extensions with messages for it.
        writes: those that it may send.
    """

    reads: frozenset[str]
    writes: frozenset[str]


EVERYTHING: Final = TopicAccess(frozenset(EXTENSIONS), frozenset(EXTENSIONS))
"""The rights on a public topic."""

NOTHING: Final = TopicAccess(frozenset(), frozenset())
