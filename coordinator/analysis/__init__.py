"""Computes the figures of a run from its records: the aggregate, the ledger, stages, and the verdict. Pure."""
