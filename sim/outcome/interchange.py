"""Runs in the formats of other tools: `--format aiperf|otel` of sim.run and analysis.compare."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sim.errors import SpecError

if TYPE_CHECKING:  # with it comes the core
    from sim.machines.record import RunRecord

FORMATS = ("aiperf", "otel")
Run = tuple[str, Mapping[str, Any], "RunRecord"]  # name, summary, record


def goodput_flag(group: Any) -> None:
    """--goodput, of every command that writes them."""
    what = "objectives of a request, in AIPerf's names and units: adds goodput (--format aiperf)"
    group.add_argument("--goodput", metavar="'METRIC:LIMIT ...'", help=what)


def check(args: argparse.Namespace, chosen: str | None) -> None:
    """Before anything runs. Raises SpecError for objectives that are none, or that nobody asks about."""
    if args.goodput is None:
        return
    if chosen != "aiperf":
        raise SpecError(f"goodput: {args.goodput}: goes with --format aiperf")
    from sim.outcome.aiperf import parse_goodput

    parse_goodput(args.goodput)


def text(runs: Sequence[Run], chosen: str, goodput: str | None) -> str:
    """One JSON object: of AIPerf's a run, or of several each by its name; of OTLP all runs as resources."""
    from sim.outcome import aiperf, otel
    from sim.outcome.requests import requests_of

    if chosen == "otel":
        return json.dumps({"resourceMetrics": [otel.resource(name, s, requests_of(r)) for name, s, r in runs]})
    slos = aiperf.parse_goodput(goodput)
    found = {name: aiperf.export(summary, requests_of(record), slos) for name, summary, record in runs}
    return json.dumps(next(iter(found.values())) if len(found) == 1 else found)
