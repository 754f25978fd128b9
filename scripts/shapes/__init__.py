"""`scripts/matrix`: short runs against every shape of target, each checked against the servers' counts."""
