"""The envelope in which `momentum.publish` writes an event into the WAL, validated before anything of it is used.

The limits are the upper bounds of `momentum.settings`. They are checked before the JSON is decoded, so that the
interpreter's recursion limit never decides.
"""

from __future__ import annotations

import re

import msgspec

MAX_EVENT = 16 * 1024 * 1024
# `momentum.row_versions` leaves out larger versions.
MAX_ROWS = 4 * MAX_EVENT
MAX_DEPTH = 256
MAX_CHANNELS = 10_000
ROWS = "momentum:rows:"
"""What the channels of changes of rows begin with. Nothing else is published on them."""

MAX_NAME = 200
"""Characters of a channel, or of a user in a key. PostgreSQL's index entries have room for 2,700 bytes."""

# After an even number of backslashes `u0000` is plain text.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_QUOTE = ord('"')
_NO_ROWS = msgspec.Raw()


class Malformed(ValueError):
    """A message under the product's prefix that `momentum.publish` did not write."""


class _Fields(msgspec.Struct, gc=False):
    channels: tuple[str, ...]
    event: msgspec.Raw
    rows: msgspec.Raw = _NO_ROWS


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A validated envelope: the channels, the event's JSON object, and the JSON of the versions of its row, if any."""

    channels: tuple[str, ...]
    body: bytes
    rows: bytes | None


_decoder = msgspec.json.Decoder(_Fields)


def is_deeper(json_text: bytes, levels: int) -> bool:
    """Return whether arrays and objects are nested more than `levels` deep. Brackets in strings do not count."""
    if json_text.count(b"[") + json_text.count(b"{") <= levels:  # true for nearly every event, and fast
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


def open_envelope(content: bytes) -> Envelope:
    """Decode the content of a logical message.

    Raises:
        Malformed: `momentum.publish` does not write such a message, or PostgreSQL could not store its parts.
    """
    size = len(content)
    if size > 2 * MAX_DEPTH:  # a shorter one cannot be nested that deeply, and most are shorter
        if size > MAX_EVENT + MAX_ROWS:
            raise Malformed(f"not an envelope: {size} bytes, more than `momentum.publish` writes")
        if is_deeper(content, MAX_DEPTH + 2):
            raise Malformed(f"not an envelope: more than {MAX_DEPTH} levels of JSON")
    try:
        content.decode()  # msgspec does not validate the inside of a Raw
        fields = _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not an envelope: {error}") from None
    if b"\\u0000" in content and _NUL.search(content):
        raise Malformed("not an envelope: a string with U+0000, which PostgreSQL cannot store")
    # A copy: a Raw is a view that would keep the whole message in memory for as long as the window holds the event.
    body = bytes(fields.event)
    if not body.startswith(b"{"):
        raise Malformed("not an envelope: the event is not an object")
    # Messages to clients add fields at the end, after a comma unless the object is `{}`.
    if body[1] != _QUOTE and not body[1:-1].strip():
        body = b"{}"
    rows = None if fields.rows is _NO_ROWS else bytes(fields.rows)
    if rows is not None and not rows.startswith(b"{"):
        raise Malformed("not an envelope: the rows are not an object")
    return Envelope(_checked(fields.channels), body, rows)


def _checked(named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the channels without duplicates, in order."""
    if len(named) == 1 and len(named[0]) <= MAX_NAME and not named[0].startswith(ROWS):  # nearly every event
        return named
    channels = tuple(dict.fromkeys(named))
    if not channels:
        raise Malformed("not an envelope: no channel")
    if len(channels) > MAX_CHANNELS:
        raise Malformed(f"not an envelope: {len(channels)} channels, more than `momentum.publish` writes")
    for name in channels:
        if len(name) > MAX_NAME:
            raise Malformed(f"not an envelope: a channel name of more than {MAX_NAME} characters")
        if name.startswith(ROWS):
            raise Malformed(f"not an envelope: only changes of rows are on channels that begin with {ROWS}")
    return channels
