"""Rows of `realtime.messages` as events on the channels of their topics.

The table is partitioned by day. The replication stream names a partition, never the table, so its partitions are
recognized by their names, which the stream has, too: `realtime.messages_2026_11_29`. Columns and their meaning:
Supabase, "Broadcast from Database".
"""

from __future__ import annotations

import re
from typing import Final

from momentum_sync.capture.row_messages import Insert, Relation
from momentum_sync.eventlog.envelope import MAX_DEPTH, Malformed, is_deeper
from momentum_sync.eventlog.event import topic_channel
from momentum_sync.wire.realtime_broadcast import encode_stored

MESSAGES: Final = 0
"""Stands for the table and all of its partitions. PostgreSQL gives no relation the id 0."""

MOST_BYTES = 3_000 * 1024
"""Size of a message's payload, as at Supabase, with the name of its event."""

_NAME = re.compile(r"messages(?:_\w+)?")
_MOST_NAME = 255  # characters of a topic, with `realtime:`, in a join
_PREFIX = "realtime:"


class Broadcasts:
    """Reads messages of the partitions that the stream has described.

    Attributes:
        places: the columns' places, by the id of the partition.
    """

    def __init__(self) -> None:
        self.places: dict[int, dict[str, int]] = {}

    def describe(self, relation: Relation) -> None:
        """Take the description of a relation. If it is no partition of the table, forget it."""
        if relation.schema == "realtime" and _NAME.fullmatch(relation.name):
            self.places[relation.oid] = {column.name: place for place, column in enumerate(relation.columns)}
        else:
            self.places.pop(relation.oid, None)

    def read(self, message: Insert) -> tuple[str, bytes]:
        """Return the channel and the JSON of a message.

        Raises:
            Malformed: it cannot be sent to clients.
        """
        places = self.places[message.relation]
        if len(message.new) < len(places):
            raise Malformed("a row of realtime.messages has fewer values than the table has columns")

        def value(name: str) -> str | None:
            place = places.get(name)
            found = None if place is None else message.new[place]
            return found if isinstance(found, str) else None

        topic, event, content = value("topic"), value("event"), value("binary_payload")
        if not topic or len(topic) > _MOST_NAME - len(_PREFIX):
            raise Malformed(f"a topic has 1 to {_MOST_NAME - len(_PREFIX)} characters")
        if event is None:
            raise Malformed("a row of realtime.messages has no event")
        payload = (value("payload") or "{}").encode() if content is None else _bytes(content)
        if content is not None and len(event.encode()) > _MOST_NAME:
            raise Malformed(f"the event of a message of bytes has more than {_MOST_NAME} bytes")
        if len(payload) + len(event) > MOST_BYTES:
            raise Malformed(f"a payload and an event of {len(payload) + len(event)} bytes, more than {MOST_BYTES}")
        if content is None and is_deeper(payload, MAX_DEPTH):
            raise Malformed(f"a payload with more than {MAX_DEPTH} levels of JSON")
        body = encode_stored(event, payload, value("id") or "", is_json=content is None)
        # Null counts as private, which is the safe choice.
        return topic_channel(topic, is_private=value("private") != "f"), body


def _bytes(text: str) -> bytes:
    """Return the bytes that a text in hexadecimal stands for. The stream's `bytea_output` is pinned."""
    try:
        return bytes.fromhex(text.removeprefix("\\x"))
    except ValueError:
        raise Malformed("bytes that are not in hexadecimal") from None
