"""Pages on the JavaScript SDK."""
