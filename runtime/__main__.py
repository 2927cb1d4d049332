"""python -m runtime: which commands there are: what runs on a device."""

import sys
from collections.abc import Sequence

from sim.__main__ import of_package
from traces.command import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, which is 2: it is no command."""
    return guarded(lambda words: of_package("runtime", "runtime.replay --trace mixtral.npz --device cpu", words), argv)


if __name__ == "__main__":
    sys.exit(main())
