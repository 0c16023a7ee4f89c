"""The stage rank: candidates, top K, explanations, recipients, records."""
