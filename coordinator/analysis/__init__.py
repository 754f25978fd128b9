"""From the records of a run to figures: the aggregate, the ledger, stages, and the verdict. Pure."""
