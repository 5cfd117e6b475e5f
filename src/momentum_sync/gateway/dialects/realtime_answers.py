"""The frames with which a session of Supabase's protocol answers, until they are written."""

from __future__ import annotations

import msgspec

from momentum_sync.gateway.dialects.realtime_errors import PREFIX
from momentum_sync.gateway.dialects.realtime_messages import Reply
from momentum_sync.gateway.dialects.realtime_place import Start
from momentum_sync.gateway.dialects.realtime_replay import Replayed
from momentum_sync.gateway.dialects.realtime_rights import Confirmed
from momentum_sync.gateway.dialects.realtime_services import Watched
from momentum_sync.gateway.dialects.realtime_topic import Topic
from momentum_sync.wire.phoenix import ClientBroadcast, ClientFrame, Version, encode_frame, encode_reply

_encode = msgspec.json.Encoder().encode


class Answers:
    """Frames that wait to be written.

    Args:
        version: of the client's serializer.
    """

    __slots__ = ("_frames", "_version")

    def __init__(self, version: Version) -> None:
        self._version = version
        self._frames: list[bytes] = []

    def __len__(self) -> int:
        return len(self._frames)

    def take(self) -> list[bytes]:
        """Return the texts since the last call."""
        frames, self._frames = self._frames, []
        return frames

    def reply(self, to: ClientFrame | ClientBroadcast, response: bytes = b"{}", *, ok: bool = True) -> None:
        """Answer a frame."""
        self._frames.append(encode_reply(self._version, to, response, ok=ok))

    def refuse(self, to: ClientFrame | ClientBroadcast, why: str) -> None:
        """Answer a frame with an error."""
        self.reply(to, _encode({"reason": why}), ok=False)

    def answer(self, to: ClientFrame | ClientBroadcast, answer: Reply | None) -> None:
        """Answer a frame of a broadcast or of presence, if the client wants that."""
        if answer is not None:
            self.reply(to, answer.response, ok=answer.ok)

    def system(self, topic: Topic, extension: str, message: str, *, ok: bool = False) -> None:
        """Send a `system` message, which clients report to the app."""
        payload = _encode({
            "message": message, "status": "ok" if ok else "error", "extension": extension,
            "channel": topic.name.removeprefix(PREFIX),
        })  # fmt: skip
        self._frames.append(encode_frame(self._version, topic.name, "system", payload, join_ref=topic.join_ref))

    def joined(self, topic: Topic, confirmed: Confirmed, start: Start, replayed: Replayed) -> None:
        """Send the messages to the app that follow the reply to a join."""
        if confirmed.wrong:
            self.system(topic, "postgres_changes", confirmed.wrong)
        elif topic.join.bindings:
            self.system(topic, "postgres_changes", "Subscribed to PostgreSQL", ok=True)
        if topic.join.wants_replication_notice:
            self.system(topic, "system", "Replication connection established", ok=True)
        if start.said:
            self.system(topic, "resume", start.said, ok=True)
        if replayed.said:
            self.system(topic, "replay", replayed.said, ok=True)
        self.tell(topic, confirmed.watched)

    def tell(self, topic: Topic, watched: Watched) -> None:
        """Send the notices about a topic's tables, once each."""
        for notice in watched.notices:
            if notice not in topic.events.notices:
                self.system(topic, "rights", notice, ok=True)
        topic.events.notices = frozenset(watched.notices)

    def presence(self, topic: Topic, state: bytes | None) -> None:
        """Send the `presence_state` of a topic, if there is one to send."""
        if state is not None:
            frame = encode_frame(self._version, topic.name, "presence_state", state, join_ref=topic.join_ref)
            self._frames.append(frame)

    def end(self, topic: Topic) -> None:
        """Send the `phx_close` of a topic, after which clients do not join it again."""
        ref = topic.join_ref
        self._frames.append(encode_frame(self._version, topic.name, "phx_close", b"{}", ref=ref, join_ref=ref))
