"""Momentum Sync: committed changes in PostgreSQL on the screens of those who may see them."""

__version__ = "0.1.0"
