"""The same replay on a real device, and the small model: everything here needs torch (extra `runtime`)."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is looking for `python -m NAME`: one line for what is not there
    from traces.extras import refuse_what_is_missing
    from traces.listing import refuse_unknown_module

    refuse_unknown_module()
    refuse_what_is_missing(__name__)
