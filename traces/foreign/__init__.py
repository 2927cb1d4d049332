"""Other tools' formats: what their importers share."""
