"""The agent: `agent join` gets a share of a plan, starts worker processes, and sends their metrics back."""
