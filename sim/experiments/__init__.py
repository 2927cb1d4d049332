"""Comparisons that are worth repeating, each one command: `python -m sim.experiments NAME ...`.

policies: miss policies side by side on your traces. buddymoe: the grid of arXiv 2511.10054. published: figures that
others measured against what is predicted for their settings. Each prints a table and, with --out, keeps it as CSV and
markdown with the command that made it.
"""
