"""`scripts/bench`: how fast the drivers are, compared with other programs and with baselines."""
