"""What the coordinator does with the target's servers besides the load: facts, checks, setup, counters, clean-up."""
