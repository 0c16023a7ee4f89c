"""The stage train: models that score a batch and then learn it."""
