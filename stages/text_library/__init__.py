"""Held-out text that models are judged on: its kinds by name, the readers of their data sets, copies among texts."""
