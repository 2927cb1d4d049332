"""The project from Python: what `import sim` offers (docs/python.md)."""
