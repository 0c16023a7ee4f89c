"""Count features: what counts alone know about an item, one family a file; bank.py lists the families."""
