"""These tests recover in a cache of their own."""

from helpers.own_cache import own_cache

__all__ = ["own_cache"]
