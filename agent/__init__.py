"""A load machine: `agent join` takes a share of a plan, hosts the worker processes, and streams their metrics back."""
