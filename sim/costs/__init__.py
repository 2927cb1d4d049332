"""Nanoseconds of an operation: roofline, measured, by class of step."""
