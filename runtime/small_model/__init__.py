"""The small model of this project."""
