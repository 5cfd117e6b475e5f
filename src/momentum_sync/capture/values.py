"""JSON of column values, as PostgreSQL's `to_jsonb` would make it, from the text that the replication stream carries.

Numbers and documents keep their own text, which is the same JSON value. A type that an extension can cast to json, such
as hstore, becomes a string here; `to_jsonb` would call the cast.

The text is that of PostgreSQL's output functions under the settings that the replication connection pins: ISO dates in
UTC, shortest floats, hexadecimal bytea. The rules are those of `json_categorize_type` and `datum_to_jsonb`:
PostgreSQL, "JSON Functions and Operators", `to_jsonb`. Array and composite literals: "Arrays", section "Array Input and
Output Syntax", and "Composite Types", section "Composite Type Input and Output Syntax".
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

import msgspec

from momentum_sync.eventlog.envelope import is_deeper


class Kind(Enum):
    """The JSON form in which `to_jsonb` renders a type."""

    BOOLEAN = "boolean"
    NUMBER = "number"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    JSON = "json"
    ARRAY = "array"
    COMPOSITE = "composite"
    TEXT = "text"
    """A string with the type's text: enums, ranges, dates, bytea and most others."""


class ColumnType(msgspec.Struct, frozen=True, kw_only=True):
    """A type of PostgreSQL.

    Attributes:
        name: `pg_type.typname`, as clients of Supabase expect: `int8`, `_text` for an array of text.
        kind: how its values become JSON; a domain has the kind of its base type.
        element: the type of an array's elements.
        delimiter: the character between an array's elements; a space for int2vector and oidvector, without braces.
        fields: name and type of each attribute of a composite, in order.
    """

    name: str
    kind: Kind
    element: ColumnType | None = None
    delimiter: str = ","
    fields: tuple[tuple[str, ColumnType], ...] = ()


class MalformedValue(ValueError):
    """Text that is no value of its type."""


_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
# A timestamp of a time zone ends in hours, and in minutes and seconds if they are not zero; JSON has both parts.
_HOURS = re.compile(r"[+-]\d\d(?= BC$|$)")
_BOUNDS = re.compile(r"(?:\[[+-]?\d+:[+-]?\d+\])+=")
# Possessive: an element may have megabytes, and text without a closing quote must not be tried in every division.
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_FIELD = re.compile(r'"(?:[^"\\]++|\\.|"")*"|[^,()"\\]+|\\.', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_MOST_LEVELS = 256
_encode = msgspec.json.Encoder().encode


def to_json(text: str, kind: ColumnType, levels: int = _MOST_LEVELS) -> bytes:
    """Return the JSON of a value that is not null.

    Args:
        text: the value.
        kind: its type.
        levels: how deep it may be nested.

    Raises:
        MalformedValue: the text is no value of the type.
    """
    if levels <= 0:
        raise MalformedValue(f"a value of {kind.name} is nested too deep")
    match kind.kind:
        case Kind.TEXT:
            return _encode(text)
        case Kind.NUMBER:
            return text.encode() if _NUMBER.fullmatch(text) else _encode(text)  # NaN and Infinity are strings
        case Kind.BOOLEAN:
            return _boolean(text)
        case Kind.TIMESTAMP:
            return _encode(text.replace(" ", "T", 1) if text[:1].isdigit() else text)
        case Kind.TIMESTAMPTZ:
            return _encode(_timestamptz(text))
        case Kind.JSON:
            return text.encode() if _is_document(text) else _encode(text)
        case Kind.ARRAY:
            return _array(text, kind, levels)
        case Kind.COMPOSITE:
            return _composite(text, kind, levels)


def _is_document(text: str) -> bool:
    """Return whether every reader can take the text of a json or jsonb value as a part of an event.

    A column of type json may hold U+0000 and lone surrogates, and both types any nesting that PostgreSQL's stack
    allows. Such a value becomes a string. The decision must not depend on this process: every instance must make the
    same event.
    """
    if "\\u0000" in text and _NUL.search(text):
        return False
    if is_deeper(text.encode(), _MOST_LEVELS):
        return False
    if _SURROGATE.search(text):
        try:
            msgspec.json.decode(text)
        except msgspec.MsgspecError:
            return False
    return True


def _boolean(text: str) -> bytes:
    if text not in ("t", "f"):
        raise MalformedValue("a boolean is neither t nor f")
    return b"true" if text == "t" else b"false"


def _timestamptz(text: str) -> str:
    if not text[:1].isdigit():  # infinity
        return text
    text = text.replace(" ", "T", 1)
    # In UTC, which the connection pins, only a year BC has something behind the time zone.
    return f"{text}:00" if text.endswith("+00") else _HOURS.sub(lambda found: f"{found[0]}:00", text)


def _array(text: str, kind: ColumnType, levels: int) -> bytes:
    """Return nested JSON arrays. Explicit lower bounds are left out, as `to_jsonb` does."""
    assert kind.element is not None
    if kind.delimiter == " ":
        return b"[" + b",".join([to_json(part, kind.element, levels - 1) for part in text.split()]) + b"]"
    bounds = _BOUNDS.match(text)
    json_text, end = _elements(text, bounds.end() if bounds else 0, kind, kind.element, levels)
    if end != len(text):
        raise MalformedValue(f"text follows an array of {kind.name}")
    return json_text


def _elements(text: str, at: int, kind: ColumnType, element: ColumnType, levels: int) -> tuple[bytes, int]:
    """Return the JSON of the array that begins at an index, and the index after it."""
    if text[at : at + 1] != "{":
        raise MalformedValue(f"an array of {kind.name} does not begin with a brace")
    bare = _unquoted_element(kind.delimiter)
    found: list[bytes] = []
    at += 1
    while text[at : at + 1] != "}" or found:
        if text[at : at + 1] == "{":
            if not levels:
                raise MalformedValue(f"a value of {kind.name} is nested too deep")
            part, at = _elements(text, at, kind, element, levels - 1)
        elif quoted := _QUOTED.match(text, at):
            part, at = to_json(_ESCAPE.sub(r"\1", quoted[1]), element, levels - 1), quoted.end()
        elif plain := bare.match(text, at):
            part = b"null" if plain[0] == "NULL" else to_json(plain[0], element, levels - 1)
            at = plain.end()
        else:
            raise MalformedValue(f"an array of {kind.name} has a malformed element")
        found.append(part)
        if text[at : at + 1] == kind.delimiter:
            at += 1
        elif text[at : at + 1] == "}":
            break
        else:
            raise MalformedValue(f"an array of {kind.name} is truncated")
    return b"[" + b",".join(found) + b"]", at + 1


@lru_cache(maxsize=16)
def _unquoted_element(delimiter: str) -> re.Pattern[str]:
    """Return the pattern of an element without quotes. A type chooses its delimiter, such as `;` for boxes."""
    return re.compile(rf'[^{re.escape(delimiter)}{{}}"\\]+')


def _composite(text: str, kind: ColumnType, levels: int) -> bytes:
    """Return a JSON object with every attribute; null where the literal has nothing between its commas."""
    values = _attributes(text, kind)
    if len(values) != len(kind.fields):
        raise MalformedValue(f"a value of {kind.name} has {len(values)} attributes, not {len(kind.fields)}")
    return b"{" + b",".join([
        _encode(name) + b":" + (b"null" if value is None else to_json(value, of, levels - 1))
        for (name, of), value in zip(kind.fields, values, strict=True)
    ]) + b"}"  # fmt: skip


def _attributes(text: str, kind: ColumnType) -> list[str | None]:
    if not (text.startswith("(") and text.endswith(")")):
        raise MalformedValue(f"a value of {kind.name} is not in parentheses")
    if text == "()" and not kind.fields:
        return []
    values: list[str | None] = []
    at, end = 1, len(text) - 1
    while True:
        parts: list[str] = []
        while at < end and text[at] != ",":
            part = _FIELD.match(text, at, end)
            if part is None:
                raise MalformedValue(f"a value of {kind.name} has a malformed attribute")
            parts.append(_unquoted(part[0]))
            at = part.end()
        values.append("".join(parts) if parts else None)
        if at >= end:
            return values
        at += 1


def _unquoted(part: str) -> str:
    if part.startswith('"'):
        part = part[1:-1].replace('""', r"\"")
    return _ESCAPE.sub(r"\1", part)
