"""One run over time."""
