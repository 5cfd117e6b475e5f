"""The decoder of row messages, on bytes written from the protocol's description and on random bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.capture.pgoutput import ProtocolError
from momentum_sync.capture.row_messages import (
    UNCHANGED,
    Delete,
    Identity,
    Insert,
    Relation,
    RelationColumn,
    Truncate,
    Unchanged,
    Update,
    Value,
    decode_row,
)

oids = st.integers(0, 2**32 - 1)
names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)
rows = st.lists(st.none() | st.just(UNCHANGED) | st.text(st.characters(codec="utf-8"), max_size=20), max_size=5).map(
    tuple
)


def encoded(values: tuple[Value, ...]) -> bytes:
    parts = [struct.pack("!H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, Unchanged):
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack("!I", len(value.encode())) + value.encode())
    return b"".join(parts)


@given(oids, names, names, st.sampled_from(Identity), st.lists(st.tuples(names, oids, st.booleans()), max_size=4))
def test_relation(oid: int, schema: str, name: str, identity: Identity, columns: list[tuple[str, int, bool]]) -> None:
    payload = b"R" + struct.pack("!I", oid) + schema.encode() + b"\0" + name.encode() + b"\0" + identity.value.encode()
    payload += struct.pack("!H", len(columns))
    for column, type_oid, is_key in columns:
        payload += struct.pack("!B", is_key) + column.encode() + b"\0" + struct.pack("!Ii", type_oid, -1)
    wanted = tuple(RelationColumn(*column) for column in columns)
    assert decode_row(payload) == Relation(oid, schema, name, identity, wanted)


def test_an_empty_schema_is_pg_catalog() -> None:
    relation = decode_row(b"R" + struct.pack("!I", 1) + b"\0t\0d" + struct.pack("!H", 0))
    assert isinstance(relation, Relation)
    assert relation.schema == "pg_catalog"


@given(oids, rows)
def test_insert(oid: int, new: tuple[Value, ...]) -> None:
    assert decode_row(b"I" + struct.pack("!I", oid) + b"N" + encoded(new)) == Insert(oid, new)


@given(oids, st.none() | rows, rows, st.sampled_from([b"K", b"O"]))
def test_update(oid: int, old: tuple[Value, ...] | None, new: tuple[Value, ...], kind: bytes) -> None:
    before = b"" if old is None else kind + encoded(old)
    assert decode_row(b"U" + struct.pack("!I", oid) + before + b"N" + encoded(new)) == Update(oid, old, new)


@given(oids, rows, st.sampled_from([b"K", b"O"]))
def test_delete(oid: int, old: tuple[Value, ...], kind: bytes) -> None:
    assert decode_row(b"D" + struct.pack("!I", oid) + kind + encoded(old)) == Delete(oid, old)


@given(st.lists(oids, max_size=5))
def test_truncate(oids: list[int]) -> None:
    payload = b"T" + struct.pack("!IB", len(oids), 3) + b"".join(struct.pack("!I", oid) for oid in oids)
    assert decode_row(payload) == Truncate(tuple(oids))


@pytest.mark.parametrize("kind", [b"B", b"C", b"M", b"O", b"Y"])
def test_other_kinds_are_passed_over(kind: bytes) -> None:
    assert decode_row(kind + b"anything") is None


INSERT = b"I" + struct.pack("!I", 7) + b"N" + encoded(("a", None, UNCHANGED, "ü"))


@pytest.mark.parametrize("length", range(len(INSERT)))
def test_a_message_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        decode_row(INSERT[:length])


@pytest.mark.parametrize(
    "broken",
    [
        INSERT + b"x",
        INSERT.replace(b"N", b"O"),
        INSERT.replace(b"n", b"b"),
        b"U" + struct.pack("!I", 7) + b"X" + encoded(()),
        b"D" + struct.pack("!I", 7) + b"N" + encoded(()),
        b"I" + struct.pack("!I", 7) + b"N" + struct.pack("!H", 1_601),
        b"T" + struct.pack("!IB", 2**32 - 1, 0),
        b"R" + struct.pack("!I", 1) + b"s\0t\0x" + struct.pack("!H", 0),
        b"I" + struct.pack("!I", 7) + b"N" + struct.pack("!HcI", 1, b"t", 1) + b"\xff",
    ],
)
def test_broken_messages_are_refused(broken: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_row(broken)


@given(st.sampled_from([b"R", b"I", b"U", b"D", b"T"]), st.binary(max_size=60))
def test_any_payload_is_decoded_or_refused(kind: bytes, rest: bytes) -> None:
    try:
        decode_row(kind + rest)
    except ProtocolError:
        pass
