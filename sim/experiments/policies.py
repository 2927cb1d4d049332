"""Policies side by side: miss policies against fetch; with --policies those of any kind, with intervals and ranks."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.experiments.side_by_side import BASES, CACHES, CALIBRATION, asked_of, side_by_side
from sim.experiments.tables import Column, Report, Row, gain, parser, percent
from sim.flags import add_hardware, hardware_fields
from sim.outcome.marks import machine_words, short_of_ram
from sim.policies.policy import Policy
from sim.policies.registry import MISS
from sim.simulation import simulate
from sim.spec import RunSpec, number
from traces.format import npz
from traces.progress import counted

ARMS = (
    "fetch", "buddy", "matched-random", "matched-next-ranked", "matched-drop",
    "buddy-b", "buddy-first-fit", "random", "drop", "cpu",
)  # fmt: skip
COLUMNS = (
    Column("trace", "trace"),
    Column("cache", "c", 3),
    Column("batch", "batch"),
    Column("arm", "miss policy"),
    Column("replay", "replay"),
    Column("tokens_per_s", "tokens/s", 2),
    Column("gain_percent", "vs fetch %", 1, signed=True),
    Column("h2d_gb", "H2D GB", 2),
    Column("substituted_weight_percent", "substituted weight %", 2),
    Column("dropped_weight_percent", "dropped weight %", 2),
    Column("hit_percent", "hits %", 1),
    Column("judged_requests", "judged requests"),
    Column("judged_tokens", "judged tokens"),
    Column("note", "note"),
)
OWN_CACHES, OWN_BATCHES = ("0.75", "0.5", "0.375"), (1, 8)  # where --policies is not given
FOOT = (
    "replay `exact`: the policy changes no result of the model, so the routing stays true. `open`: OPEN LOOP, the "
    "policy is lossy but the routing stays the trace's; a real model would route differently afterwards. Weight "
    "shares are no accuracy.",
    "substituted and dropped weight: shares of all wanted router weight that a stand-in, or nobody, answered for.",
    "tokens/s counts decode steps; H2D bytes count the prompts too, in which every miss is fetched (or "
    "computed by the CPU).",
    "matched-*: the gates and budget of `buddy`, and a stand-in only where a buddy was there, chosen another way: "
    "what a buddy is worth is its distance from these rows in quality, which a replay cannot show; in speed they must "
    "be about equal.",
    "`buddy` is reading A of the paper (TAE gate tau = .95), which stops most tokens on some models; `buddy-b` "
    "reading B (coverage alpha = .95, TAE gate at the layer's 15th percentile); `buddy-first-fit` its Algorithm 1 "
    "without gates or budget, whose controls are `random` and `drop`.",
    "A batch larger than the number of judged requests decodes only those together.",
    "cpu, drop and random never load an expert in decode steps: what is resident stays the first c of "
    "each layer, hence their lower hit rate.",
    "cpu charges the host of the hardware preset, reading weights at its measured rate beside the GPU.",
)


def report(argv: Sequence[str]) -> tuple[Report, str | None]:
    """(the report, --out). Raises SpecError, TraceError or CatalogError for bad input."""
    flags = parser("policies", __doc__ or "")
    flags.add_argument("--trace", nargs="+", required=True, metavar="FILE", help="routing traces, or names of samples")
    flags.add_argument(
        "--policies",
        nargs="+",
        metavar="KIND[=NAME,NAME]",
        help=f"of {', '.join(BASES)}: each kind's own comparison, with intervals and ranks; all of the kind where no "
        "names are given (of miss those of the comparison without this flag)",
    )
    flags.add_argument(
        "--cache",
        nargs="+",
        metavar="C",
        help=f"cache sizes, as of sim.run (default: {' '.join(OWN_CACHES)}; with --policies {' '.join(CACHES)})",
    )
    flags.add_argument(
        "--batch", nargs="+", type=int, metavar="N", help="batch sizes (default: 1 8; with --policies 1)"
    )
    add_hardware(flags, "a100-pcie4")
    flags.add_argument("--engine", default="fused")
    flags.add_argument("--precision", default="q4")
    flags.add_argument(
        "--calibration",
        metavar="FRACTION|FILE",
        help=f"set aside for every arm, never judged (default: {CALIBRATION}; with --policies if one is fitted)",
    )
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args(argv)
    if args.policies is not None:
        return side_by_side(args, asked_of(args.policies, ARMS)), args.out
    args.cache, args.batch = args.cache or OWN_CACHES, args.batch or OWN_BATCHES
    args.calibration = args.calibration or CALIBRATION
    return _miss(args), args.out


def _miss(args: Namespace) -> Report:
    """Miss policies with fetch in front, by capacity and batch size."""
    head = _settings(args)
    rows: list[Row] = []
    for path in args.trace:
        source, has = _facts(path)
        head.append(f"`{Path(path).stem}`: {source}")
        cells = [(cache, batch) for cache in args.cache for batch in args.batch]
        for cache, batch in counted(cells, Path(path).stem + ", setting", "cache {0[0]}, batch {0[1]}".format):
            rows += _arms(args, path, cache, batch, has)
    return Report("Miss policies compared", head, COLUMNS, rows, FOOT)


def _settings(args: Namespace) -> list[str]:
    return [
        f"{machine_words(hardware_fields(args))}, engine {args.engine}, experts in {args.precision}; eviction lru, "
        f"no prefetch, placement first, seed {args.seed}",
        f"calibration {args.calibration}: every arm sets the same requests aside and judges the same "
        "others; only fitted policies look at them",
    ]


def _facts(path: str) -> tuple[str, set[str]]:
    """(where a trace comes from, the optional arrays that it has)."""
    trace = npz.read(npz.find(path))
    kind = "captured" if trace.real else "SYNTHETIC"
    has = {name for name in ("weights", "logits", "lookahead") if trace.has(name)}
    return f"{kind}; {trace.meta.get('source', 'source not given')}", has


def _arms(args: Namespace, path: str, cache: str, batch: int, has: set[str]) -> list[Row]:
    rows: list[Row] = []
    base: float | None = None
    share = number(cache)
    shown = {"trace": Path(path).stem, "cache": cache if share is None else share, "batch": batch}
    for arm in counted(ARMS, "arm", at_once=False):
        row: dict[str, Any] = {**shown, "arm": arm}
        lacks = [array for array in MISS[arm].needs if array not in has]
        if lacks:
            row["note"] = f"not run: needs {', '.join(f'`{array}`' for array in lacks)}, which the trace does not have"
        else:
            row |= run(args, path, cache, batch, MISS[arm])
            base = row["tokens_per_s"] if arm == "fetch" else base
            row["gain_percent"] = gain(row["tokens_per_s"], base)
        rows.append(row)
    return rows


def run(args: Namespace, path: str, cache: str, batch: int, miss: Policy) -> dict[str, Any]:
    """The figures of one arm."""
    fields = {name: getattr(args, name) for name in ("engine", "precision", "calibration", "seed", "max_steps")}
    fields |= {"trace": path, "cache": cache, "batch": batch, "miss": miss.name, "engine_as_costs": True}
    out, _ = simulate(RunSpec.of({**hardware_fields(args), **fields}))
    quality, gpu = out["quality"], ["does not fit the GPU's memory"] if out["memory"]["fits"] is False else []
    return {
        "replay": "open" if miss.lossy else "exact",
        "tokens_per_s": out["tokens_per_s"],
        "h2d_gb": sum(out["h2d_bytes"].values()) / 1e9,
        "substituted_weight_percent": percent(quality["substituted_weight"]),
        "dropped_weight_percent": percent(quality["dropped_weight"]),
        "hit_percent": 100 * out["hits"] / (out["wanted"] or 1),
        "judged_requests": out["requests"],
        "judged_tokens": out["tokens"],
        "note": "; ".join([*gpu, *short_of_ram(out["memory"])]),
    }
