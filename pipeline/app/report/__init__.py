"""The report: metrics, plots and one HTML page."""
