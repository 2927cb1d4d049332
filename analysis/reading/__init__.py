"""Runs read and checked."""
