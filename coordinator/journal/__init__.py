"""The journal: the records of a run, and the file that keeps them."""
