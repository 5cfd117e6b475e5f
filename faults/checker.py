"""The verdict: a client's record against the witness's.

A record lists the client's messages, in order. Between two snapshots it must be exactly the witness's events on its
channels, in their order, each once; resumes change nothing. The rows of a snapshot show which events it contains: of
every row, the missing events are the first ones, and after them the row looks as in the snapshot. Pure: no clock, no
random numbers, no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

Rows = Mapping[tuple[str, str], tuple[str, ...]]


@dataclass(frozen=True)
class Change:
    """An event that must reach every subscriber of one of its channels.

    `what` identifies it, `row` is the row that changed, `shown` is the row in snapshots afterwards (None: not shown),
    and `at` is the time of the commit in seconds since 1970.
    """

    what: tuple[object, ...]
    user: str
    channels: frozenset[str]
    row: tuple[str, str]
    shown: tuple[str, ...] | None
    at: float


@dataclass(frozen=True)
class Snapshot:
    """A state that the client received. `rows` is its content by kind and id; `at` seconds since 1970."""

    rows: Rows
    at: float


@dataclass(frozen=True)
class Came:
    """An event that the client received. `what` as the witness names it."""

    what: tuple[object, ...]


@dataclass(frozen=True)
class Invalidated:
    """Cache keys that the client received."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """From here on the client certainly has the channels (`on`), or may have lost them."""

    channels: frozenset[str]
    on: bool


Record = Snapshot | Came | Invalidated | Held


@dataclass
class Client:
    """A client: its user, all channels that it ever has, whether its snapshots have rows, and its record.

    `unversioned_until` is when the policies of notifications last changed, in seconds since 1970. Earlier events carry
    no version of their row. They are judged by the row at delivery, and withheld if it has changed since: its later
    event follows. Events that a failover lost are treated the same way. An event that takes a row
    away carries its last version.
    """

    name: str
    user: str
    channels: frozenset[str]
    sees_rows: bool
    record: list[Record] = field(default_factory=list)
    unversioned_until: float = float("-inf")


class Branch(list[Change]):
    """A history that a TRUNCATE has ended: `emptied` is the kind of row that it removed.

    TRUNCATE is not MVCC-safe: a query that began before it, and waited for it, finds the table empty and sees the
    commits in between. The server ends such a history at once, and every client starts afresh.
    """

    emptied: str | None = None


@dataclass
class _Segment:
    snapshot: Snapshot
    emptied: str | None = None
    lost: Set[tuple[object, ...]] = frozenset()
    came: list[int] = field(default_factory=list)
    excused: set[int] = field(default_factory=set)


def expected(client: Client, changes: Iterable[Change]) -> list[Change]:
    """Return the witness's events on the client's channels."""
    return [change for change in changes if change.channels & client.channels]


def check_branches(client: Client, branches: Sequence[Sequence[Change]]) -> list[str]:
    """Return errors in the client's record, where history was cut off and continued elsewhere.

    `branches` are the histories that existed, the surviving one last. The records between two snapshots must agree with
    one of them; the records after the last snapshot must agree with the surviving one, to its end.
    """
    if len(branches) == 1:
        return check(client, branches[0])
    starts = [index for index, record in enumerate(client.record) if isinstance(record, Snapshot)]
    if not starts:
        return [f"{client.name}: it was never given a state"]
    wrong = [] if starts[0] == 0 else [f"{client.name}: something came before any state"]
    survived = {change.what for change in branches[-1]}
    for start, end in zip(starts, [*starts[1:], len(client.record)], strict=True):
        last = end == len(client.record)
        piece = replace(client, record=client.record[start:end])
        found = [
            check(piece, branch, ended=last, lost={change.what for change in branch} - survived)
            for branch in (branches[-1:] if last else branches)
        ]
        wrong += sorted(found, key=len)[0]
    return wrong


def check(
    client: Client, changes: Sequence[Change], *, ended: bool = True, lost: Set[tuple[object, ...]] = frozenset()
) -> list[str]:
    """Return errors in the client's record as sentences; none if it is correct.

    A record that has not `ended` may stop anywhere. Changes that are `lost` are not in the history that survived.
    """
    wanted = expected(client, changes)
    where = {change.what: index for index, change in enumerate(wanted)}
    if len(where) != len(wanted):
        return ["the workload made two events that cannot be told apart"]
    wrong: list[str] = []
    segments = list(_segments(client, wanted, where, wrong))
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        segment.emptied = changes.emptied if isinstance(changes, Branch) else None
        segment.lost = lost
        wrong += _complete(client, segment, wanted, whole=last and ended)
    if not segments:
        wrong.append("it was never given a state")
    return [f"{client.name}: {sentence}" for sentence in wrong]


def _segments(
    client: Client, wanted: Sequence[Change], where: Mapping[tuple[object, ...], int], wrong: list[str]
) -> Iterable[_Segment]:
    """Split the record at its snapshots. Add unknown, repeated and out-of-order events to `wrong`."""
    segment: _Segment | None = None
    keys: tuple[str, ...] | None = None
    off: dict[str, int] = {}
    back: set[str] = set()  # of these, channels that are on again before any event has shown where
    for record in client.record:
        if isinstance(record, Snapshot):
            if segment is not None:
                yield segment
            segment, keys, off, back = _Segment(record), None, {}, set()
        elif segment is None:
            wrong.append("something came before any state")
        elif isinstance(record, Invalidated):
            keys = record.keys
        elif isinstance(record, Held):
            _hold(segment, record, off, back, wanted)
        else:
            index = where.get(record.what)
            if index is None:
                wrong.append(f"this was never committed: {record.what}")
                continue
            if segment.came and index <= segment.came[-1]:
                again = "twice" if index in segment.came else "out of order"
                wrong.append(f"this came {again}: {record.what}")
            for channel, since in list(off.items()):
                _excuse(segment, wanted, channel, since, index)
                if channel in back:
                    del off[channel]
            back.clear()
            segment.came.append(index)
            wrong += _invalidation(client, wanted[index], keys)
            keys = None
    if segment is not None:
        for channel, since in off.items():
            _excuse(segment, wanted, channel, since, len(wanted))
        yield segment


def _hold(
    segment: _Segment, record: Held, off: dict[str, int], back: set[str], wanted: Sequence[Change]
) -> None:  # fmt: skip
    place = segment.came[-1] if segment.came else -1
    for channel in record.channels:
        if not record.on:
            off.setdefault(channel, place)
            back.discard(channel)
        elif channel in off and not segment.came:
            back.add(channel)  # the snapshot's own place is not known
        elif channel in off:
            # Events up to the next one on another channel may precede or follow the confirmation.
            since = off.pop(channel)
            _excuse(segment, wanted, channel, since, _next_on_others(wanted, channel, place))


def _next_on_others(wanted: Sequence[Change], channel: str, place: int) -> int:
    for index in range(place + 1, len(wanted)):
        if channel not in wanted[index].channels:
            return index
    return len(wanted)


def _excuse(segment: _Segment, wanted: Sequence[Change], channel: str, since: int, until: int) -> None:
    segment.excused.update(index for index in range(since + 1, until) if channel in wanted[index].channels)


def _invalidation(client: Client, change: Change, keys: tuple[str, ...] | None) -> Iterable[str]:
    if change.row[0] != "score" or change.user != client.user:
        return
    day = change.what[2]
    must = {f"momentum:{kind}:{change.user}" for kind in ("current", "history", "trend")}
    must.add(f"momentum:breakdown:{change.user}:{day}")
    if keys is None or set(keys) != must:
        yield f"{keys} came as the cache keys of {change.what}"


def _complete(client: Client, segment: _Segment, wanted: Sequence[Change], *, whole: bool) -> Iterable[str]:
    """Return missing events: up to the last received one, or up to the end for the last segment."""
    came = set(segment.came)
    end = len(wanted) if whole else segment.came[-1] + 1 if segment.came else 0
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index in range(len(wanted)):
        rows[wanted[index].row].append(index)
    for row, indexes in rows.items():
        within = [index for index in indexes if index < end]
        if within:
            # Commits become visible in another order than the WAL's: a snapshot may have changes after the last event.
            later = [wanted[index].shown for index in indexes if index >= end]
            yield from _complete_row(client, segment, wanted, came, row, within, later)
    if client.sees_rows:
        known = {change.row for change in wanted[:end]}
        for row in set(segment.snapshot.rows) - {change.row for change in wanted}:
            yield f"the snapshot shows {row}, which never was"
        if whole:
            for row in set(segment.snapshot.rows) - known:
                yield f"the snapshot shows {row}, which was not yet"


def _complete_row(
    client: Client, segment: _Segment, wanted: Sequence[Change], came: set[int], row: tuple[str, str],
    indexes: Sequence[int], later: Sequence[tuple[str, ...] | None],
) -> Iterable[str]:  # fmt: skip
    count = 0
    while count < len(indexes) and indexes[count] not in came:
        count += 1
    # Events that may be withheld, because a later event of the row follows; see `Client`.
    doubtful = row[0] == "notification"
    replaced = {
        index for index in indexes
        if (index != indexes[-1] or later or wanted[index].what in segment.lost)
        and doubtful and wanted[index].at < client.unversioned_until and wanted[index].what[0] != "notification_removed"
    }  # fmt: skip
    missing = [index for index in indexes[count:] if index not in came | segment.excused | replaced]
    for index in missing:
        yield (
            f"this is missing, later ones of its row came: {wanted[index].what}, committed at {wanted[index].at:.3f},"
            f" policies changed before {client.unversioned_until:.3f}"
        )
    before = [index for index in indexes[:count] if index not in segment.excused]
    if not client.sees_rows:
        for index in before:
            if wanted[index].at > segment.snapshot.at:
                yield f"this is missing: {wanted[index].what}"
    elif len(before) == count:
        shown = wanted[indexes[count - 1]].shown if count else None
        held = segment.snapshot.rows.get(row)
        if held is None and row[0] == segment.emptied:
            return
        if held != shown and not (count == len(indexes) and held in later) and indexes[count - 1] not in replaced:
            yield (f"the snapshot shows {row} as {held}, but the events after it begin where it was {shown}")


def adds_up(client: Client, changes: Sequence[Change], held: Rows) -> bool:
    """Return whether the client's last snapshot with the later events equals the tables.

    Rows of channels that the client left in between are not compared.
    """
    after = {change.what: change for change in changes}
    rows: dict[tuple[str, str], tuple[str, ...]] = {}
    doubtful: set[str] = set()
    for record in client.record:
        if isinstance(record, Snapshot):
            rows = dict(record.rows)
            doubtful = set()
        elif isinstance(record, Held) and not record.on:
            doubtful |= {channel.split(":")[0].removesuffix("s") for channel in record.channels}
        elif isinstance(record, Came) and (change := after.get(record.what)) is not None:
            if change.shown is None:
                rows.pop(change.row, None)
            else:
                rows[change.row] = change.shown
    return {row: shown for row, shown in rows.items() if row[0] not in doubtful} == {
        row: shown for row, shown in held.items() if row[0] not in doubtful
    }
