"""Random bytes, guided by coverage, for everything that parses input of clients or of the database."""
