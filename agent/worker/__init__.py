"""A worker process: it has client instance pools, issues the load, and counts the results."""
