"""The report: figures gathered, plotted and put on one page."""
