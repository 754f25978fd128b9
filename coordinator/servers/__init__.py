"""Everything that is asked of the target beside the load: facts, checks, setup, counters and clean-up."""
