"""`afresh demo`: the run, what it observes, and how it is shown."""
