"""Whether the server does what it promises, from what is known of its parts."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

_DEGRADED_LAG_S = 5.0
_UNHEALTHY_LAG_S = 30.0


@dataclass(frozen=True, slots=True)
class Health:
    """`status` is `healthy`, `degraded` (behind, but moving) or `unhealthy` (no client can be served now)."""

    status: str
    http_status: int


def judge(capture_state: str, lag: float, *, draining: bool = False, publishes: bool = True) -> Health:
    """Health from the state of capture and its lag in seconds; red for a server that is about to end.

    Where triggers are missing (not `publishes`) it is degraded: other events still come, and no restart would mend it.
    """
    if draining or capture_state != "live" or lag > _UNHEALTHY_LAG_S:
        return Health("unhealthy", 503)
    if lag > _DEGRADED_LAG_S or not publishes:
        return Health("degraded", 200)
    return Health("healthy", 200)


def memory_usage() -> dict[str, int]:
    """The process's peak of resident memory in bytes. `ru_maxrss` is in KiB but for macOS, which counts bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss": peak if sys.platform == "darwin" else peak * 1024}
