"""Supabase's own clients, unmodified, against the server."""
