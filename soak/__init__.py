"""A server under load for hours, with churn and small faults: its memory, files, WAL and log must not grow."""
