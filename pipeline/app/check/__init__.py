"""`afresh check`: find what keeps the service from working before the first start, and how to fix it."""
