"""The edge in: where events come from."""
