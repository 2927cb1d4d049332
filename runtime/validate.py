"""python -m runtime.validate: how far the simulation is off, on this device, component by component.

Theory of operation. On every link (the device's own; or three paces of a CPU's, so that stall is under 20 %, between,
and over 80 % of the time) there are cases that calibrate and cases that are judged, on other requests. All run in
one process, round after round, each round in a new seeded order, so that whatever else the machine does meets all
alike. From the calibrating cases' records a hardware file is fitted (runtime.measuring.terms); from it every judged
case is simulated; its time per token and the median of its replays are compared, part by part, beside their spread.
On a link whose pace is not chosen capacities go up to all experts, and there are long prompts. A link is calibrated at
capacities of its own (runtime.measuring.cases). A record whose cases are all in one regime cannot show what the others
would: it is inconclusive and says so in its first line.

Decisions are compared in lock-step: the device replays the order of completions that the simulator had; then every
decision, hence every hit, must be the same. Free-running replays may decide otherwise where two things happen almost at
once: their hits are reported, and the core, given their order of completions, must decide as they did.

Exit status 0 within tolerance, 1 outside it by more than twice the run-to-run spread (or the device failed), 3
inconclusive, 2 bad input.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.device.flags import with_device
from runtime.measuring.flags import capacity, device_flags, listed, measuring_flags, requests
from runtime.measuring.pacing import TARGETS
from runtime.measuring.table import markdown
from runtime.measuring.validation import Validation
from traces.command import Parser, guarded, out_folder, write_bytes
from traces.errors import UserError

FRACTION = 0.25


def parser() -> Parser:
    """The flags."""
    out = Parser(prog="python -m runtime.validate", description="Measure how far the simulation is off on this device.")
    add = out.add_argument
    add("--trace", required=True, metavar="FILE|SAMPLE", help="routing trace, of two requests at least")
    add("--model", metavar="NAME|FILE", help="model that runs (default: the trace's)")
    policies = "EVICTION, EVICTION+PREFETCH or EVICTION+cpu (default: lru, belady, and lru with a prefetcher)"
    add("--policies", type=listed(str), metavar="A,B+C", help=policies)
    add("--caches", type=listed(capacity), metavar="A,B", help="capacities, on every link")
    add("--batches", type=listed(requests), metavar="A,B", help="requests together, on every link")
    share = f"requests set aside to calibrate on (default: {FRACTION})"
    add("--calibration", type=float, default=FRACTION, metavar="FRACTION", help=share)
    add("--out", default="validation", metavar="DIR", help="validation.json, .md and the hardware files (validation)")
    add("--json", action="store_true", help="print the JSON record instead of the table")
    device_flags(out)
    measuring_flags(out)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(lambda found: with_device(lambda: _command(found)), argv)


def _command(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    folder = out_folder(args.out)
    if not 0 < args.calibration < 1:
        raise UserError(f"calibration: {args.calibration:g}: must be a fraction between 0 and 1")
    with tempfile.TemporaryDirectory() as scratch:
        out = Validation(args, Path(scratch)).run() | {"command": "python -m runtime.validate " + " ".join(argv)}
        save(out, folder, Path(scratch))
    print(json.dumps(out) if args.json else markdown(out))
    return int(out["exit"])


def save(out: dict[str, Any], folder: Path, scratch: Path) -> None:
    """validation.json, validation.md and the hardware file of each link, in the place of an earlier record's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _links_of(folder / "validation.json") & {*TARGETS, "link"}:
        (folder / f"{name}.toml").unlink(missing_ok=True)
    for link in out["links"]:
        write_bytes(folder / f"{link['name']}.toml", (scratch / f"{link['name']}.toml").read_bytes())
    write_bytes(folder / "validation.md", (markdown(out) + "\n").encode())
    write_bytes(folder / "validation.json", (json.dumps(out, indent=1, allow_nan=False) + "\n").encode())


def _links_of(record: Path) -> set[str]:
    """The links of an earlier record; none where there is no record of ours."""
    try:
        return {str(link["name"]) for link in json.loads(record.read_text())["links"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


if __name__ == "__main__":
    sys.exit(main())
