"""The demo's simulation."""
