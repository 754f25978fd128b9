"""One worker process: it hosts client instance pools, issues the load, and counts what happened."""
