"""A server under load for hours, with clients that come and go and small faults: what it holds must not grow."""
