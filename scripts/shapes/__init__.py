"""`scripts/matrix`: short runs against every shape of target, each held to its ledger."""
