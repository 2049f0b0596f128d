"""Allocation: from a budget, and scores where they decide, to the shape of every layer."""
