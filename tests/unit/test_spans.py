"""Spans of events: capture and gateways agree on ids without a word between them, and tell nothing of the content."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from momentum_sync.eventlog.event import Event
from momentum_sync.telemetry.spans import EventSpans, Span


@dataclass
class Delivered:
    """An event that was written."""

    event: Event
    began: float = 102.0
    delay: float | None = 3.0
    frames: int = 7


class Process:
    """The spans of one process, and its clock."""

    def __init__(self, share: float = 1.0, name: str = "p") -> None:
        self.spans: list[Span] = []
        self.now = 101.0
        self.of = EventSpans(share, self.spans.append, lambda: self.now, name)


def events(count: int, first: int = 1) -> list[Event]:
    """Return events with consecutive offsets, committed at 100 s."""
    return [
        Event.build(
            offset=first + number, place=(200 + number, 0), xid=50, committed_at=100.0, channels=("a",),
            body=b'{"event_type":"x"}', per_user=frozenset(),
        )
        for number in range(count)
    ]  # fmt: skip


def test_capture_and_gateway_make_one_trace() -> None:
    (event,) = events(1)
    capture, gateway = Process(name="capture"), Process(name="gateway")
    capture.of.published("e", [event])
    capture.now = 105.0
    capture.of.logged(1)
    gateway.of.delivered("e", [Delivered(event)])
    (read, logged), (written,) = capture.spans, gateway.spans
    assert (read.name, read.parent, read.begins, read.ends) == ("momentum capture", None, 100.0, 101.0)
    assert read.attributes == {
        "messaging.system": "momentum-sync",
        "messaging.message.id": "e-1",
        "messaging.message.body.size": len(event.body),
        "momentum.event_type": event.event_type,
    }
    assert (logged.name, logged.parent, logged.begins, logged.ends) == ("momentum log", read.number, 101.0, 105.0)
    assert logged.attributes == {}
    assert (written.name, written.parent, written.begins, written.ends) == (
        "momentum deliver", read.number, 102.0, 103.0,
    )  # fmt: skip
    assert written.attributes == {"momentum.frames": 7}
    assert {span.trace for span in (read, logged, written)} == {read.trace}
    assert len({span.number for span in (read, logged, written)}) == 3
    assert 0 < read.trace < 2**128
    assert all(0 < span.number < 2**64 for span in (read, logged, written))


def test_each_gateway_has_a_span_of_its_own() -> None:
    (event,) = events(1)
    gateways = [Process(name=name) for name in ("a", "b")]
    for gateway in gateways:
        gateway.of.delivered("e", [Delivered(event)])
    (first,), (second,) = (gateway.spans for gateway in gateways)
    assert (first.trace, first.parent) == (second.trace, second.parent)
    assert first.number != second.number


def test_events_and_epochs_have_traces_of_their_own() -> None:
    one, two = events(2)
    process = Process()
    process.of.published("e", [one, two])
    process.of.published("f", [one])
    assert len({span.trace for span in process.spans}) == 3


@pytest.mark.parametrize(("share", "chosen"), [(1.0, [1, 2, 3, 4, 5, 6]), (0.5, [2, 4, 6]), (0.3, [3, 6]), (0.001, [])])
def test_the_same_share_is_chosen_everywhere(share: float, chosen: list[int]) -> None:
    process, gateway, all_events = Process(share), Process(share), events(6)
    process.of.published("e", all_events)
    assert [span.attributes["messaging.message.id"] for span in process.spans] == [f"e-{number}" for number in chosen]
    gateway.of.delivered("e", [Delivered(event) for event in all_events])
    assert [span.trace for span in gateway.spans] == [span.trace for span in process.spans]


def test_one_without_subscribers_has_no_span_of_delivery_and_the_next_one_has() -> None:
    one, two = events(2)
    process = Process()
    process.of.delivered("e", [Delivered(one, delay=None), Delivered(two)])
    assert len(process.spans) == 1


def test_the_log_has_a_span_once_and_in_order() -> None:
    process = Process()
    process.of.published("e", events(3))
    process.spans.clear()
    process.of.logged(0)
    assert process.spans == []
    process.of.logged(2)
    assert len(process.spans) == 2
    process.of.logged(2)
    assert len(process.spans) == 2
    process.of.logged(9)
    assert len(process.spans) == 3


def test_a_log_that_stands_still_is_waited_for_within_bounds() -> None:
    process = Process()
    process.of.published("e", events(1_002))
    process.spans.clear()
    process.of.logged(2_000)
    assert len(process.spans) == 1_000
