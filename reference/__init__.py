"""The documentation site: pages written by hand, and references printed from the code."""
