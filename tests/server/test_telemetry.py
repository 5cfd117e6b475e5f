"""OpenTelemetry: the data that a collector receives. A recorder stands in for one, which the tests cannot install."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from momentum_sync.eventlog.event import Event
from momentum_sync.telemetry.otlp import interval_s
from momentum_sync.telemetry.spans import EventSpans
from momentum_sync.telemetry.spans import Span as OurSpan
from tests.fixtures.postgres import Sql, add_notification
from tests.fixtures.server import TIMEOUT_S, Start


class Recorder:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.names: set[str] = set()
        self.answer = 200
        self.refused = 0

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.names |= {
                    each.value.string_value for each in spans.resource.attributes if each.key == "service.name"
                }
                self.spans += [span for scope in spans.scope_spans for span in scope.spans]
        else:
            assert path == "/v1/metrics"
            for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics |= {metric.name: metric for scope in metrics.scope_metrics for metric in scope.metrics}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if recorder.answer == 200:
                recorder.take(self.path, body)
            else:
                recorder.refused += 1
            self.send_response(recorder.answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1000")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield recorder
        server.shutdown()
        thread.join()


async def test_an_event_is_traced_from_the_commit_to_the_socket(
    start: Start, db: Sql, user: UUID, collector: Recorder
) -> None:
    async with start(otel=True, otel_traces=1.0) as server, server.live(user) as client:
        add_notification(db, user, title="a secret title")
        event = (await client.until("realtime_event"))["event"]
        epoch, offset, _ = event["id"].split("-")
        async with asyncio.timeout(TIMEOUT_S):
            while len(collector.spans) < 3:
                await asyncio.sleep(0.05)
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"momentum capture", "momentum log", "momentum deliver"}
    first = spans["momentum capture"]
    assert first.parent_span_id == b""
    for name in ("momentum log", "momentum deliver"):
        assert spans[name].trace_id == first.trace_id
        assert spans[name].parent_span_id == first.span_id
        assert first.start_time_unix_nano <= spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
    about = {each.key: each.value.string_value or each.value.int_value for each in first.attributes}
    assert about["messaging.message.id"] == f"{epoch}-{offset}"
    assert about["momentum.event_type"] == "push_notification"
    told = b"".join(span.SerializeToString() for span in collector.spans)
    assert b"secret" not in told
    assert str(user).encode() not in told
    assert collector.names == {"momentum-sync"}


async def test_metrics_arrive_as_prometheus_shows_them(start: Start, db: Sql, user: UUID, collector: Recorder) -> None:
    async with start(otel=True, metrics_open=True) as server, server.live(user) as client:
        add_notification(db, user)
        await client.until("realtime_event")
        collector.metrics.clear()
        async with asyncio.timeout(TIMEOUT_S):
            while "momentum_connections" not in collector.metrics:
                await asyncio.sleep(0.05)
        async with server.http() as http:
            text = (await http.get("/metrics")).text
    shown = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    events = collector.metrics["momentum_events"].sum
    assert events.is_monotonic
    counts = {point.attributes[0].value.string_value: point.as_double for point in events.data_points}
    assert counts["push_notification"] == float(shown['momentum_events_total{type="push_notification"}'])
    (connections,) = collector.metrics["momentum_connections"].gauge.data_points
    assert connections.as_double == 1
    (delays,) = collector.metrics["momentum_commit_to_send_seconds"].histogram.data_points
    assert delays.count == sum(delays.bucket_counts) == float(shown["momentum_commit_to_send_seconds_count"])
    assert len(delays.bucket_counts) == len(delays.explicit_bounds) + 1
    below = delays.explicit_bounds[8]
    assert sum(delays.bucket_counts[:9]) == float(shown[f'momentum_commit_to_send_seconds_bucket{{le="{below:g}"}}'])
    assert not delays.HasField("min")
    assert collector.metrics["momentum_commit_to_send_seconds"].unit == "s"


async def test_without_a_collector_the_server_serves_and_says_so_once(
    start: Start, db: Sql, user: UUID, collector: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    collector.answer = 400
    async with start(otel=True, otel_traces=1.0) as server, server.live(user) as client:
        async with asyncio.timeout(TIMEOUT_S):
            while collector.refused < 4:
                add_notification(db, user)
                await client.until("realtime_event")
                await asyncio.sleep(0.1)
    assert capsys.readouterr().err.count("metrics not sent, retrying") <= 1


async def test_stopping_does_not_wait_for_a_collector(
    start: Start, db: Sql, user: UUID, collector: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    collector.answer = 503
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(start(otel=True, otel_traces=1.0))
        async with server.live(user) as client, asyncio.timeout(TIMEOUT_S):
            add_notification(db, user)
            await client.until("realtime_event")
        async with asyncio.timeout(TIMEOUT_S):  # without a bound, six attempts with doubling delays take 30 s
            await stack.aclose()


async def test_stopping_does_not_wait_for_a_collector_that_never_answers(
    start: Start, db: Sql, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    accepted, ended = asyncio.Event(), asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await ended.wait()
        writer.close()
        await writer.wait_closed()

    silent = await asyncio.start_server(accept, "127.0.0.1")
    async with AsyncExitStack() as stack:
        port = silent.sockets[0].getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        server = await stack.enter_async_context(start(otel=True, otel_traces=1.0))
        async with server.live(user) as client, asyncio.timeout(TIMEOUT_S):
            add_notification(db, user)
            await client.until("realtime_event")
            await accepted.wait()
        async with asyncio.timeout(TIMEOUT_S):  # without a bound, it takes 30 s
            await stack.aclose()
    ended.set()
    silent.close()
    await silent.wait_closed()
    for thread in threading.enumerate():  # it has an answer now
        if thread.name == "telemetry":
            await asyncio.to_thread(thread.join, TIMEOUT_S)


def _event(offset: int) -> Event:
    return Event.build(
        offset=offset, place=(offset, 0), xid=1, committed_at=100.0, channels=("a",), body=b'{"event_type":"t"}'
    )


def test_all_processes_choose_the_same_events_and_ids() -> None:
    capture: list[OurSpan] = []
    gateway: list[OurSpan] = []

    class Written:
        def __init__(self, offset: int) -> None:
            self.event, self.began, self.frames = _event(offset), 101.0, 3
            self.delay: float | None = 2.0

    spans = EventSpans(0.1, capture.append, lambda: 100.5, "a")
    spans.published("e", [_event(offset) for offset in range(1, 31)])
    assert [span.attributes["messaging.message.id"] for span in capture] == ["e-10", "e-20", "e-30"]
    spans.logged(20)
    assert [span.name for span in capture[3:]] == ["momentum log"] * 2
    spans.logged(20)
    assert len(capture) == 5
    for name in ("b", "c"):
        EventSpans(0.1, gateway.append, lambda: 100.5, name).delivered(
            "e", [Written(offset) for offset in range(1, 31)]
        )
    assert [(span.trace, span.parent) for span in gateway] == 2 * [(span.trace, span.number) for span in capture[:3]]
    assert len({span.number for span in capture + gateway}) == len(capture) + len(gateway)
    assert {(span.begins, span.ends) for span in gateway} == {(101.0, 102.0)}
    assert len({span.trace for span in gateway}) == 3


def test_what_is_never_logged_is_forgotten() -> None:
    taken: list[OurSpan] = []
    spans = EventSpans(1.0, taken.append, lambda: 0.0, "a")
    spans.published("e", [_event(offset) for offset in range(3_000)])
    taken.clear()
    spans.logged(3_000)
    assert len(taken) == 1_000


@pytest.mark.parametrize(("given", "seconds"), [("", 60), ("5000", 5), ("0", 1), ("10", 1), ("soon", 60)])
def test_the_interval_is_that_of_opentelemetry(given: str, seconds: float) -> None:
    assert interval_s({"OTEL_METRIC_EXPORT_INTERVAL": given}) == seconds
