"""Durable events: the log, the window, and the feed between capture and gateways."""
