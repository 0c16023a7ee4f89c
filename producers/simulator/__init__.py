"""Simulated users: preferences, seasons, changes and bursts, and an experiment that measures uplift."""
