"""Callers: tokens, granted channels, visible events."""
