"""The stage rank: pools of candidates, rules, top K and reasons."""
