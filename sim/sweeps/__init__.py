"""Many runs at once: what a sweep is made of, and the search behind a recommendation."""
