"""python -m analysis: which commands there are: what shows and compares runs."""

import sys
from collections.abc import Sequence

from sim.__main__ import of_package
from traces.command import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, which is 2: it is no command."""
    return guarded(lambda words: of_package("analysis", "analysis.report out/lru out/buddy", words), argv)


if __name__ == "__main__":
    sys.exit(main())
