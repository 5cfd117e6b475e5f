"""The momentum app: its tables, channels, messages, reads and routes."""
