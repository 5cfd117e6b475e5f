"""OpenTelemetry: traces of single events, from the commit to the socket, and the metrics, sent by OTLP."""

from importlib.util import find_spec

from momentum_sync.errors import Unsuitable


def check_installed() -> None:
    """Raise Unsuitable if the packages of the extra are missing."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise Unsuitable(
            "MOMENTUM_OTEL is set, but OpenTelemetry is not installed.",
            "Run: pip install 'momentum-sync[otel]', or unset MOMENTUM_OTEL.",
        )
