"""One file per tool's format: its reader and its writer."""
