"""The controller host: `coordinator start` splits a plan over agents, merges their metrics, and reports."""
