"""Sends spans and metrics to a collector by OTLP over HTTP. OpenTelemetry's own variables (`OTEL_…`) say where and how.

The library batches spans in a thread of its own, and drops them while no collector answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar, cast
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample

from momentum_sync import observe
from momentum_sync.telemetry.spans import Span
from momentum_sync.version import __version__

_Result = TypeVar("_Result")
_SCOPE = InstrumentationScope("momentum_sync", __version__)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_KINDS = {"momentum capture": SpanKind.PRODUCER, "momentum deliver": SpanKind.CONSUMER}
_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_INTERVAL_MS = 60_000.0  # the specification's default
_UNKNOWN = cast(float, None)  # the encoder leaves such a value out, although its type does not say so
_SEND_TIMEOUT_MS = 10_000.0
_LAST_SEND_S = 2.0  # a server that stops waits for no collector longer than this


class Telemetry:
    """The connection to a collector, for one process.

    Args:
        role: of this process, which its resource names.
    """

    def __init__(self, role: str) -> None:
        # Without a collector the library would log every attempt. `run` logs the first failure.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._resource = _resource(role)
        self._exporter: SpanExporter = OTLPSpanExporter()
        self._spans = BatchSpanProcessor(self._exporter)
        self._metrics = OTLPMetricExporter()
        self._started_ns = time.time_ns()
        self._interval_s = interval_s(os.environ)

    async def open(self) -> None:
        """Do nothing: both exporters connect when they have something to send."""

    async def close(self) -> None:
        """Send the remaining spans, if a collector takes them in time."""
        self._metrics.shutdown()
        sending = _aside(self._spans.shutdown)
        await asyncio.wait({sending}, timeout=_LAST_SEND_S)
        self._exporter.shutdown()  # an attempt that waits to be repeated ends now

    def take(self, span: Span) -> None:
        """Queue a span; drop it if the queue is full."""
        self._spans.on_end(_readable(span, self._resource))

    async def run(self, families: Callable[[], Iterable[Family]]) -> None:
        """Send the metrics at intervals until cancelled. Log the first of several failures."""
        failing = False
        while True:
            await asyncio.sleep(self._interval_s)
            data = metrics_data(families(), self._resource, self._started_ns, time.time_ns())
            result = await _aside(partial(self._metrics.export, data, _SEND_TIMEOUT_MS))
            failed = result is not MetricExportResult.SUCCESS
            if failed and not failing:
                observe.telemetry_failed()
            failing = failed


def _aside(work: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """Return the result of work in a thread that does not keep the process from ending.

    A collector may take a request and never answer it, and nothing interrupts that.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def run() -> None:
        try:
            settle = partial(future.set_result, work())
        except Exception as error:
            settle = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any longer
            loop.call_soon_threadsafe(lambda: None if future.done() else settle())

    threading.Thread(target=run, name="telemetry", daemon=True).start()
    return future


def interval_s(environment: Mapping[str, str]) -> float:
    """Return the seconds between two exports of metrics, of OTEL_METRIC_EXPORT_INTERVAL in milliseconds."""
    try:
        return max(1_000.0, float(environment.get(_INTERVAL) or _INTERVAL_MS)) / 1000
    except ValueError:
        return _INTERVAL_MS / 1000


def _resource(role: str) -> Resource:
    found = Resource.create(
        {"service.version": __version__, "service.instance.id": uuid4().hex, "momentum.role": role}
    )  # fmt: skip
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):  # neither OTEL_SERVICE_NAME nor an attribute
        found = found.merge(Resource({SERVICE_NAME: "momentum-sync"}))
    return found


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    def context(number: int, *, remote: bool) -> SpanContext:
        return SpanContext(span.trace, number, is_remote=remote, trace_flags=_SAMPLED)

    return ReadableSpan(
        span.name,
        context=context(span.number, remote=False),
        parent=None if span.parent is None else context(span.parent, remote=True),
        resource=resource,
        attributes=span.attributes,
        kind=_KINDS.get(span.name, SpanKind.INTERNAL),
        start_time=_ns(span.begins),
        # The commit has the database's clock, which may be ahead of this machine's.
        end_time=_ns(max(span.begins, span.ends)),
        instrumentation_scope=_SCOPE,
    )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def metrics_data(families: Iterable[Family], resource: Resource, started_ns: int, now_ns: int) -> MetricsData:
    """Return Prometheus' metric families in OpenTelemetry's form, cumulative since `started_ns`."""
    metrics = []
    for family in families:
        data: Sum | Gauge | Histogram
        if family.type == "histogram":
            points = [_histogram(samples, started_ns, now_ns) for samples in _series(family)]
            data = Histogram(points, AggregationTemporality.CUMULATIVE)
        else:
            numbers = [
                NumberDataPoint(sample.labels, started_ns, now_ns, float(sample.value))
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
            if family.type == "counter":
                data = Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True)
            else:
                data = Gauge(numbers)
        metrics.append(Metric(family.name, family.documentation, _unit(family.name), data))
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(_SCOPE, metrics, "")], "")])


def _unit(name: str) -> str:
    return {"seconds": "s", "bytes": "By", "ratio": "1"}.get(name.rsplit("_", 1)[-1], "")


def _series(family: Family) -> list[list[Sample]]:
    """Return the samples of each histogram in a family, by its labels without the bound."""
    found: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in family.samples:
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        found.setdefault(labels, []).append(sample)
    return list(found.values())


def _histogram(samples: Sequence[Sample], started_ns: int, now_ns: int) -> HistogramDataPoint:
    """Return a histogram. Prometheus counts a value in every bucket above it, OpenTelemetry in one."""
    buckets = [(float(each.labels["le"]), int(each.value)) for each in samples if "le" in each.labels]
    counts = [after - before for (_, before), (_, after) in zip([(0.0, 0), *buckets], buckets, strict=False)]
    labels = {name: value for name, value in samples[0].labels.items() if name != "le"}
    total = next((each.value for each in samples if each.name.endswith("_sum")), 0.0)
    return HistogramDataPoint(
        labels, started_ns, now_ns, count=buckets[-1][1], sum=total, bucket_counts=counts,
        explicit_bounds=[bound for bound, _ in buckets[:-1]],
        min=_UNKNOWN, max=_UNKNOWN,
    )  # fmt: skip
