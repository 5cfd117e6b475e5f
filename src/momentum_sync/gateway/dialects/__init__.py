"""Protocols spoken on a WebSocket."""
