"""Paths of the contract, in one place for server, SDK, specification and tools."""

from __future__ import annotations

PREFIX = "/functions/v1/realtime-momentum-sync"
"""The WebSocket; every HTTP path exists under it, too."""

SHORT = "/ws"
"""A short name for the WebSocket."""

SOCKETS = frozenset({PREFIX, f"{PREFIX}/", SHORT, f"{PREFIX}{SHORT}"})
"""All paths of the WebSocket."""

REALTIME_SOCKETS = ("/realtime/v1/websocket", "/socket/websocket")
"""Paths of the WebSocket that speaks Supabase's protocol: at Supabase, and at its server alone."""

BROADCASTS = ("/realtime/v1/api/broadcast", "/api/broadcast")
"""Paths of broadcasts by HTTP: at Supabase, and at its server alone."""
