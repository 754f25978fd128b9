"""Metrics: histograms, the content of a frame, and merging. Pure."""
