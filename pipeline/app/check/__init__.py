"""`afresh check`: what is wrong before the first start, and how to mend it."""
