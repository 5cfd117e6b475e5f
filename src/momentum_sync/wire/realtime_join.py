"""The payload of a `phx_join` of Supabase's clients, and the response to it.

Supabase takes a malformed payload for one without options, and booleans and numbers as strings, too: Supabase,
"Realtime Protocol", section "Joining a channel". The response repeats each requested binding unchanged and in order,
with an id, because the clients compare them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard
from zlib import crc32

import msgspec

_MOST_ID = 2**27  # as `erlang:phash2`, which makes the ids at Supabase
_encode = msgspec.json.Encoder().encode
_ordered = msgspec.json.Encoder(order="sorted").encode
_object = msgspec.json.Decoder(dict[str, object])


class Binding(msgspec.Struct, frozen=True):
    """Changes of rows that a client asks for.

    Attributes:
        id: its number, which events name. Equal bindings have equal ids, within one channel and across joins.
        event: `INSERT`, `UPDATE`, `DELETE` or `*`, in upper case; anything else is the client's mistake.
        schema: a schema, or `*`.
        table: a table, or `*`.
        filter: the filter's text; None for all rows.
        select: the requested columns; None for all of them.
        given: the JSON object as the client sent it.
    """

    id: int
    event: str
    schema: str
    table: str
    filter: str | None
    select: tuple[str, ...] | None
    given: bytes


class Replay(msgspec.Struct, frozen=True):
    """Broadcasts to send again: since a time in milliseconds since 1970, the newest `limit` of them; None for all."""

    since: int
    limit: int | None


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """A request to join a topic.

    Attributes:
        access_token: the user's token; None for that of the connection.
        bindings: changes of rows.
        sends_to_self: a client's broadcasts are delivered to the client, too.
        acknowledges: a client's broadcasts are answered.
        is_private: policies on `realtime.messages` decide.
        has_presence: the client gets the presence of the topic.
        presence_key: the client's name in it; empty for a new one.
        replay: broadcasts to send again.
        has_bad_replay: they were asked for with parameters that are none.
        wants_replication_notice: report when broadcasts from the database arrive.
    """

    access_token: str | None = None
    bindings: tuple[Binding, ...] = ()
    sends_to_self: bool = False
    acknowledges: bool = False
    is_private: bool = False
    has_presence: bool = False
    presence_key: str = ""
    replay: Replay | None = None
    has_bad_replay: bool = False
    wants_replication_notice: bool = False


def parse_join(payload: bytes) -> Join:
    """Return the request in a payload, without its malformed parts."""
    try:
        given = _object.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Join()
    config = _mapping(given.get("config"))
    broadcast, presence = _mapping(config.get("broadcast")), _mapping(config.get("presence"))
    token = given.get("access_token") or given.get("user_token")
    return Join(
        access_token=token if isinstance(token, str) else None,
        bindings=_bindings(config.get("postgres_changes")),
        sends_to_self=_flag(broadcast.get("self")),
        acknowledges=_flag(broadcast.get("ack")),
        is_private=_flag(config.get("private")),
        has_presence=_flag(presence.get("enabled", bool(presence))),  # clients before 2025 do not say `enabled`
        presence_key=_text(presence.get("key")) or "",
        replay=(replay := _replay(broadcast.get("replay"))),
        has_bad_replay=replay is None and _is_mapping(broadcast.get("replay")),
        wants_replication_notice=_flag(broadcast.get("replication_ready")),
    )


def join_response(bindings: Sequence[Binding]) -> bytes:
    """Return the JSON of the response to a join: each binding as it was sent, with its id."""
    parts = [
        binding.given[:-1] + (b',"id":%d}' if binding.given != b"{}" else b'"id":%d}') % binding.id
        for binding in bindings
    ]
    return b'{"postgres_changes":[' + b",".join(parts) + b"]}"


def parse_token(payload: bytes) -> str | None:
    """Return the token of an `access_token` message; None where it names none."""
    try:
        return _text(_object.decode(payload).get("access_token"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _bindings(given: object) -> tuple[Binding, ...]:
    if not isinstance(given, list):
        return ()
    bindings: list[Binding] = []
    ids: dict[int, bytes] = {}
    for each in given:
        if not _is_mapping(each):
            continue
        # A client's own `id` would stand beside ours.
        asked = {name: value for name, value in each.items() if name != "id"}
        number = _id(_ordered(asked), ids)
        schema, table = _text(asked.get("schema")), _text(asked.get("table"))
        select = asked.get("select")
        bindings.append(
            Binding(
                id=number,
                event=(_text(asked.get("event")) or "*").upper(),
                schema=schema or "public",
                table=table or "*",
                filter=_text(asked.get("filter")),
                select=tuple(filter(_is_text, select)) if isinstance(select, list) else None,
                given=_encode(asked),
            )
        )
    return tuple(bindings)


def _id(text: bytes, taken: dict[int, bytes]) -> int:
    """Return a number from 1 to 2^27 that only equal texts share within a channel."""
    number = crc32(text) % _MOST_ID + 1
    while taken.setdefault(number, text) != text:
        number = number % _MOST_ID + 1
    return number


def _replay(given: object) -> Replay | None:
    if not _is_mapping(given):
        return None
    since, limit = _number(given.get("since")), _number(given.get("limit"))
    if since is None or (limit is None and given.get("limit") is not None):
        return None
    return Replay(since, None if limit is None else max(1, limit))


def _flag(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _mapping(value: object) -> Mapping[str, object]:
    return value if _is_mapping(value) else {}


def _is_mapping(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, dict)
