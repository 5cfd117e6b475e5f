"""PostgreSQL for all parts: connections, migrations, queries as a caller."""
