"""Reads records: compares, draws, shows."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is looking for `python -m NAME`: one line where there is no such command
    from traces.listing import refuse_unknown_module

    refuse_unknown_module()
