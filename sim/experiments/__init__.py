"""Comparisons that are worth repeating, each one command: `python -m sim.experiments NAME ...`.

policies: policies of a kind side by side on your traces, with intervals and ranks. buddymoe: the grid of arXiv
2511.10054. published: figures that others measured against what is predicted for their settings. Each prints a table
and, with --out, keeps it as CSV and markdown with the command that made it.
"""
