"""Runs whose routing is known only as the model speaks."""
