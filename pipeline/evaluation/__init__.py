"""The stage measure: quality of every model on the live stream, drift, metrics."""
