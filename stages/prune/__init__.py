"""Structured pruning: what is scored (criteria), how much goes (budget), how weights are cut (surgery)."""
