"""Simple models: served by name, or measured beside the served one."""
