"""The stage event: bytes from the topic become columns, or rejects with a reason."""
