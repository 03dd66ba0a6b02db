"""`sgps demo`: a federation of three sites on one machine, then classifiers from one exemplar, measured, in a table and a report."""
