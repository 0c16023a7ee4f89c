"""The stage state: ids and rows, histories, consumed items, and the counts that are the streaming memories."""
