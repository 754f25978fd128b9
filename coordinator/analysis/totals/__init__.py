"""Adds up the records of a run: the aggregate, which all other analysis reads, and its parts. Pure."""
