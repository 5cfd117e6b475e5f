"""The verdict on a long run: growth is found, and steady quantities pass."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from soak.chart import chart
from soak.verdict import Sample, trends

FLAT = [
    Sample(at=at * 10.0, rss=100_000_000 + at % 3, files=250 + at % 5, clients=200 + at % 5, retained=10**6,
           log=at * 5_000, events=at * 10, received=at * 10, lag_ms=5)
    for at in range(1, 101)
]  # fmt: skip


def flat(samples: list[Sample]) -> dict[str, bool]:
    return {trend.what: trend.is_flat for trend in trends(samples)}


def test_a_run_that_is_flat() -> None:
    assert all(flat(FLAT).values())
    warm = [replace(sample, rss=sample.rss // 2) if sample.at < 90 else sample for sample in FLAT]
    assert all(flat(warm).values()), "the beginning, in which caches fill, does not count"


@pytest.mark.parametrize(
    ("what", "grown"),
    [
        ("memory of the server", [replace(each, rss=each.rss + int(each.at) * 50_000) for each in FLAT]),
        ("open files beside clients", [replace(each, files=each.files + int(each.at) // 20) for each in FLAT]),
        ("WAL that the slot retains", [replace(each, retained=int(each.at) * 10**6) for each in FLAT]),
        ("log of one event", [replace(each, log=int(each.log * (1 + each.at / 500))) for each in FLAT]),
    ],
)
def test_what_grows_is_found(what: str, grown: list[Sample]) -> None:
    assert [name for name, is_flat in flat(grown).items() if not is_flat] == [what]


def test_too_few_samples_say_nothing() -> None:
    with pytest.raises(ValueError, match="too few"):
        trends(FLAT[:8])


def test_the_chart_is_an_image() -> None:
    drawn = ET.fromstring(chart(FLAT))
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 6
