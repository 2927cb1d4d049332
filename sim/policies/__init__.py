"""The policies by name, and the user's own."""
