"""The results of a run: the summary as text and JSON, the time series, and the files of a run folder."""
