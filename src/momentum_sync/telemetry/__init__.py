"""OpenTelemetry: traces of single events, from the commit to the socket, and the metrics, sent by OTLP."""

from importlib.util import find_spec

from momentum_sync.errors import Unsuitable

_PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def check_installed() -> None:
    """Raise Unsuitable if the packages of the extra are missing."""
    try:
        missing = [name for name in _PACKAGES if find_spec(name) is None]
    except ModuleNotFoundError:  # of a package above
        missing = [*_PACKAGES]
    if missing:
        raise Unsuitable(
            "MOMENTUM_OTEL is set, but OpenTelemetry is not installed.",
            "Run: pip install 'momentum-sync[otel]', or unset MOMENTUM_OTEL.",
        )
