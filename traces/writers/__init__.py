"""Files that other tools read, from a trace, a frequency profile or a placement: one file per format."""
