"""How fast the `client` driver is, held against what a person would write with redis-py alone: see `--help`."""
