"""Live views of a running run: a table on a terminal, or lines."""
