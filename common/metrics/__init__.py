"""What is measured: histograms, what a frame contains for each second, and how two frames merge. Pure."""
