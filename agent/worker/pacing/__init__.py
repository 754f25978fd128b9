"""Decides when a worker may begin operations: in closed loops, at rates and in stages. The same for every driver."""
