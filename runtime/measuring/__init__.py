"""From durations measured in place to terms, and from these to a verdict."""
