"""Misses against cache size."""
