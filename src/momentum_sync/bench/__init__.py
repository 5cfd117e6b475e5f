"""Load on any deployment."""
