"""Hydra's groups: YAML only."""
