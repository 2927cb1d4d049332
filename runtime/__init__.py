"""The same replay on a real device, and the small model: everything here needs torch (extra `runtime`)."""

import importlib.util
import sys

if sys.argv[:1] == ["-m"] and importlib.util.find_spec("torch") is None:  # a command line: one line, no traceback
    print("error: python -m runtime needs torch; pip install -e '.[runtime]'", file=sys.stderr)
    raise SystemExit(2)

if sys.argv[:1] == ["-m"]:  # Python is looking for `python -m NAME`: one line where there is no such command
    from traces.listing import refuse_unknown_module

    refuse_unknown_module()
