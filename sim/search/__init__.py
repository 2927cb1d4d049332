"""The search behind a recommendation."""
