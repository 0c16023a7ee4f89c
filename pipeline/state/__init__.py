"""The stage state: ids and rows, histories, consumed items, counts (the streaming memories)."""
