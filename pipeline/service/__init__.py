"""The loop that drives the stages, and what it needs to survive a crash."""
