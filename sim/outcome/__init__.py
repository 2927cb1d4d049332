"""From a record to what it says: summary, bounds, verdict, text."""
