"""Processes of this machine that share a stage's work: how they start, fail and end."""
