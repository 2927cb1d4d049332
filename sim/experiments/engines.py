"""Engines side by side: each as it behaves, in the same GPU memory on the same trace and machine."""

import re
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim import catalog
from sim.catalog.files import entry_or_file
from sim.engines import FIT, behaving
from sim.errors import CatalogError, SpecError, unknown
from sim.experiments.cases import toml
from sim.experiments.phases import PARTS, Phase, phase, why_fastest
from sim.experiments.tables import Column, More, Report, Row, parser, percent
from sim.memo import Kept
from sim.outcome.marks import SYNTHETIC
from sim.prepare import own_calibration
from sim.simulation import simulate, write
from sim.spec import RunSpec
from traces.command import out_folder
from traces.format import npz
from traces.format.trace import RoutingTrace

if TYPE_CHECKING:
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.link_spec import Link
    from sim.machines.record import RunRecord

MEMO_BYTES = 1 << 28
SET_ASIDE = "0.3"  # of the requests, where nothing else is asked for
MOST_RATIO = 1_000_000
NO_ENGINE = "lru + fetch (no engine)"
REFERENCE = {"engine": "ideal", "cache": FIT, "eviction": "lru", "miss": "fetch"}
PHASES = {"decode": False, "prompt": True}  # whether its steps are prefill
CAUSES = ("demand", "prefetch", "background", "admission", "stream")
COLUMNS = (
    Column("trace", "trace"),
    Column("ratio", "link/host", 2, csv_only=True),
    Column("engine", "engine"),
    Column("version", "version", csv_only=True),
    Column("tokens_per_s", "decode tokens/s", 2),
    Column("prompt_tokens_per_s", "prompt tokens/s", 2),
    *(Column(f"decode_{part}_percent", f"{part.replace('_', ' ')} %", 1) for part in PARTS),
    *(Column(f"prompt_{part}_percent", f"prompts: {part.replace('_', ' ')} %", 1, csv_only=True) for part in PARTS),
    Column("decode_hit_percent", "hits %", 1),
    Column("prompt_hit_percent", "prompts: hits %", 1, csv_only=True),
    Column("decode_mb_per_token", "MB/token", 1),
    Column("prompt_mb_per_token", "MB/prompt token", 1),
    Column("decode_on_host_per_token", "host experts/token", 1),
    *(Column(f"h2d_gb_{cause}", f"{cause} GB", 2, csv_only=True) for cause in CAUSES),
    Column("residents", "what lies where"),
    Column("link_gb_per_s", "link GB/s", 2, csv_only=True),
    Column("host_gb_per_s", "host GB/s", 2, csv_only=True),
    Column("requests", "judged requests", csv_only=True),
    Column("tokens", "judged tokens", csv_only=True),
    Column("words", "in words", csv_only=True),
    Column("note", "note"),
)
FOOT = (
    "stall % to rest %: where the time of decode steps went. stall: waiting for the link; cpu wait: for the host; "
    "experts: the GPU computes them (and reads them over the link meanwhile, where the engine does that); rest: dense "
    "parts, the engine's own time, decisions, head",
    "hits, MB/token, host experts/token are of decode steps, too; MB/prompt token of prompts",
    f"{NO_ENGINE}: every miss fetched from page-locked memory, no cost of an engine; a reference, not ranked",
    "what does not fit, or could not run, is not ranked",
)


@dataclass(frozen=True)
class Asked:
    """One trace, and what every engine of it has in common."""

    path: str
    trace: RoutingTrace
    fields: dict[str, Any]
    own_ratio: float | None  # link / host read rate of the machine as it is

    @property
    def stem(self) -> str:
        return Path(self.path).stem


@dataclass(frozen=True)
class Arm:
    """One engine on one trace at one ratio; the others None where it could not run. record: without its events."""

    row: dict[str, Any]
    summary: dict[str, Any] | None = None
    record: "RunRecord | None" = None
    phases: dict[str, Phase] | None = None

    @property
    def ranked(self) -> bool:
        return (
            self.summary is not None and self.row["engine"] != NO_ENGINE and self.summary["memory"]["fits"] is not False
        )


def report(argv: Sequence[str]) -> tuple[Report, str | None]:
    """(the report, --out). Raises SpecError, TraceError or CatalogError for bad input."""
    args = _flags().parse_args(argv)
    if args.out is not None:
        out_folder(args.out)
    engines, hardware = _engines(args.engines), catalog.hardware(args.hardware)
    asked = _asked(args, hardware)
    memo = Kept(MEMO_BYTES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if args.out is None else args.out) / "hardware"
        machines = {each.stem: _machines(args, hardware, each, folder) for each in asked}
        arms = [
            arm
            for each in asked
            for ratio, name in machines[each.stem].items()
            for arm in _sorted([_arm(each, engine, name, ratio, memo) for engine in (*engines, NO_ENGINE)])
        ]
    if args.out is not None:
        for arm in arms:
            if arm.summary is not None and arm.record is not None:
                write(Path(args.out) / "runs" / _folder(arm.row), arm.summary, arm.record, "none")
    own = [arm.row for arm in arms if arm.row["own"]]
    foot = [*_reasons(asked, arms), *FOOT, _costs(hardware)]
    more = _by_ratio(asked, arms) if args.ratios else ()
    scaled = [arm.row for arm in arms if not arm.row["own"]]
    return Report("Engines side by side", _head(args, asked), COLUMNS, own, foot, more, scaled), args.out


def _flags() -> Any:
    flags = parser("engines", __doc__ or "")
    flags.add_argument("--trace", nargs="+", required=True, metavar="FILE", help="routing traces, or names of samples")
    flags.add_argument("--hardware", default="rtx4090", metavar="NAME|FILE")
    flags.add_argument(
        "--vram",
        nargs="+",
        metavar="24GB",
        help="memory of the GPU, for each trace its own or one for all (default: the hardware's)",
    )
    flags.add_argument(
        "--context", type=int, metavar="N", help="tokens per sequence (default: the trace's longest request)"
    )
    flags.add_argument("--precision", default="q4", metavar="NAME")
    flags.add_argument(
        "--calibration", metavar="FRACTION|FILE",
        help=f"set aside for every engine alike, never judged (default: {SET_ASIDE}; nothing of a trace of one "
        "request, or of a sample that brings its own)",
    )  # fmt: skip
    flags.add_argument("--engines", metavar="A,B,...", help="only these (default: every one that has a behaviour)")
    flags.add_argument(
        "--ratios", nargs="+", type=float, metavar="R", help="also with a link of R times the host's read rate"
    )
    return flags


# --- what is asked for ---


def _engines(given: str | None) -> list[str]:
    every = [name for name in catalog.names("engine") if behaving(name)]
    if given is None:
        return every
    asked = [name.strip() for name in given.split(",")]
    for name in asked:
        if not name or (catalog.engine(name) and behaving(name) is None):
            raise unknown("engines: an engine with a behaviour", name, every)
    return list(
        dict.fromkeys(name if name.lower().endswith(".toml") else catalog.find("engine", name) for name in asked)
    )


def _asked(args: Namespace, hardware: "Hardware") -> list[Asked]:
    common = {"hardware": args.hardware, "precision": catalog.precision(args.precision), "max_steps": args.max_steps}
    out: dict[str, Asked] = {}
    for path, vram in zip(args.trace, _vram(args, hardware), strict=True):
        found = npz.find(path)
        trace = npz.read(found)
        if (stem := Path(path).stem) in out:
            raise SpecError(f"trace: {path}: another one is called {stem}, too; must have a name of its own")
        longest = int(trace.position.max()) + 1
        if args.context is not None and args.context < longest:
            raise SpecError(f"context: {args.context}: {path} has requests of {longest} tokens; must be as many")
        fields = {
            **common,
            "vram": vram,
            "trace": path,
            "context": args.context or longest,
            "calibration": _aside(args, trace, found),
        }
        RunSpec.of(REFERENCE | fields)  # what is wrong for everyone is no row
        out[stem] = Asked(path, trace, fields, _ratio(args, hardware, trace))
    return [*out.values()]


def _vram(args: Namespace, hardware: "Hardware") -> list[str]:
    """Of each trace."""
    given, traces = args.vram or (), len(args.trace)
    if len(given) not in (0, 1, traces):
        raise SpecError(f"vram: {' '.join(given)}: must be one for all traces, or one for each of the {traces}")
    if not given and hardware.mem_bytes is None:
        raise SpecError(f"vram: missing: {args.hardware} does not say how much it has; give --vram 24GB")
    return list(given) if len(given) == traces else [*(given or [f"{hardware.mem_bytes}B"])] * traces


def _aside(args: Namespace, trace: RoutingTrace, path: Path) -> str | None:
    if args.calibration is not None:
        return str(args.calibration)
    alone = len(set(trace.sequence.tolist())) == 1
    return None if alone or own_calibration(path) else SET_ASIDE


def _ratio(args: Namespace, hardware: "Hardware", trace: RoutingTrace) -> float | None:
    """Of the machine as it is, for copies of one expert; None where it has no rates, or the trace's model no sizes.
    Raises SpecError for --ratios that are none, or of which nothing can be made."""
    wrong = (
        f"{args.hardware} has no rates of a link and a host" if hardware.link is None or hardware.host is None else ""
    )
    try:
        size = 0 if wrong else catalog.model(trace.model).expert_bytes(catalog.precision(args.precision))
    except CatalogError:
        wrong = f"the sizes of {trace.model} are not known"
    for ratio in args.ratios or ():
        if not 0 < ratio <= MOST_RATIO:
            raise SpecError(f"ratios: {ratio:g}: must be a number above 0, of at most {MOST_RATIO:,}")
        if wrong:
            raise SpecError(f"ratios: {ratio:g}: {wrong}; leave --ratios out")
    if wrong or hardware.link is None or hardware.host is None:
        return None
    return hardware.link.rate(size) / hardware.host.read_rate()


def _machines(args: Namespace, hardware: "Hardware", asked: Asked, folder: Path) -> dict[float | None, str]:
    """ratio -> name or file of the hardware, the machine's own first."""
    out = {asked.own_ratio: str(args.hardware)}
    for ratio in args.ratios or ():
        assert asked.own_ratio is not None  # `_ratio` refuses
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{asked.stem}-link-{ratio:g}.toml"
        path.write_text(_scaled(args.hardware, hardware, ratio / asked.own_ratio), encoding="utf-8")
        out.setdefault(ratio, str(path))
    return out


def _scaled(name: str, hardware: "Hardware", by: float) -> str:
    """The machine as TOML, the rates of its links times `by`."""
    _, canonical, table = entry_or_file("hardware", name)
    links = {key: getattr(hardware, key) for key in ("link", "pageable_link")}
    changed = {key: _faster(link, by) for key, link in links.items() if link is not None}
    told = {"name": canonical, "source": f"{canonical}, the rates of its links x {by:.6g}"}
    kept = {key: value for key, value in table.items() if key not in ("aliases", "sources")}
    return "".join(f"{key} = {toml(value)}\n" for key, value in {**kept, **changed, **told}.items())


def _faster(link: "Link", by: float) -> dict[str, Any]:
    table = link.model_dump(exclude_unset=True, exclude={"aliases", "facts", "sources"})
    if link.curve is not None:
        return table | {"curve": [[size, rate * by] for size, rate in link.curve]}
    assert link.h2d_gb_per_s is not None
    return table | {"h2d_gb_per_s": link.h2d_gb_per_s * by}


# --- what comes of it ---


def _arm(asked: Asked, engine: str, hardware: str, ratio: float | None, memo: Kept) -> Arm:
    fields = {**asked.fields, **(REFERENCE if engine == NO_ENGINE else {"engine": engine}), "hardware": hardware}
    shown = {"trace": asked.stem, "ratio": ratio, "own": hardware == asked.fields["hardware"], "engine": _label(engine)}
    try:
        out, record = simulate(RunSpec.of(fields), full=True, memo=memo)
    except (SpecError, CatalogError) as error:
        return Arm({**shown, "note": f"not run: {error}"})
    phases = {name: phase(record, prefill) for name, prefill in PHASES.items()}
    return Arm({**shown, **_figures(out, phases)}, out, replace(record, groups={}), phases)


def _label(engine: str) -> str:
    return engine if engine == NO_ENGINE else catalog.engine(engine).name


def _figures(out: dict[str, Any], phases: dict[str, Phase]) -> dict[str, Any]:
    """The cells of one row."""
    told = out.get("engine") or {}
    row: dict[str, Any] = {name: told.get(name) for name in ("version", "link_gb_per_s", "host_gb_per_s", "words")}
    row |= {"tokens_per_s": out["tokens_per_s"], "prompt_tokens_per_s": phases["prompt"].tokens_per_s}
    for name, each in phases.items():
        row |= {f"{name}_{part}_percent": percent(each.share(part)) for part in PARTS}
        if each.tokens:
            row[f"{name}_hit_percent"] = 100 * each.hit_share
            row[f"{name}_mb_per_token"] = each.h2d_bytes / 1e6 / each.tokens
            row[f"{name}_on_host_per_token"] = each.on_host / each.tokens
    row |= {f"h2d_gb_{cause}": out["h2d_bytes"].get(cause, 0) / 1e9 for cause in CAUSES}
    slots, trace = out["slots"]["total"], out["trace"]
    row["residents"] = (
        told.get("residents") or f"{slots:,} slots for {trace['moe_layers'] * trace['n_experts']:,} experts"
    )
    row |= {"requests": out["requests"], "tokens": out["tokens"]}
    return row | {"note": "; ".join(note for note in out["notes"] if note != SYNTHETIC)}


def _sorted(arms: Sequence[Arm]) -> list[Arm]:
    """By decode speed, then that of prompts; what could not run last."""
    return sorted(
        arms,
        key=lambda a: (-(a.row.get("tokens_per_s") or 0), -(a.row.get("prompt_tokens_per_s") or 0), a.summary is None),
    )


def _folder(row: Row) -> str:
    """Of one run: trace, engine, and the ratio where it is not the machine's own."""
    tail = "" if row["own"] else f" link {row['ratio']:g}"
    return re.sub(r"[^\w.+-]+", "-", f"{row['trace']} {row['engine']}{tail}").strip("-")


# --- in words ---


def _head(args: Namespace, asked: Sequence[Asked]) -> list[str]:
    told = [
        f"the same for all: {args.hardware}, experts in {asked[0].fields['precision']}, batch 1, and of each trace the "
        "memory, context and requests named below; resident is what the engine's own knob makes of that memory, or its "
        "own default where it has none that fits itself to a card",
        *([f"each run ends after {args.max_steps} steps"] if args.max_steps else []),
    ]
    for each in asked:
        kind = "captured" if each.trace.real else "SYNTHETIC"
        aside = each.fields["calibration"]
        ratio = "" if each.own_ratio is None else f"; link/host {each.own_ratio:.2f}"
        source = each.trace.meta.get("source", "source not given")
        room = f"{each.fields['vram']} of GPU memory, KV entries of {each.fields['context']:,} tokens"
        told.append(f"`{each.stem}`: {kind}; {source}; {room}; {_calibrated_on(aside, each.path)}{ratio}")
    return told


def _calibrated_on(aside: str | None, path: str) -> str:
    if aside is not None:
        return f"calibration {aside}, set aside for every engine alike: all judge the same requests"
    own = own_calibration(npz.find(path))
    return f"what is fitted is fitted on the sample {own}" if own else "nothing set aside: what is fitted cannot run"


def _costs(hardware: "Hardware") -> str:
    if hardware.measured is not None:
        return f"durations from a calibration on {hardware.measured.device}"
    return "NOT CALIBRATED: costs are the catalog's, of published figures; none was measured on this machine"


def _of(arms: Sequence[Arm], asked: Asked, ratio: float | None) -> dict[str, dict[str, Phase]]:
    """engine -> phases, of those that are ranked."""
    mine = [arm for arm in arms if arm.row["trace"] == asked.stem and arm.row["ratio"] == ratio and arm.ranked]
    return {arm.row["engine"]: arm.phases for arm in mine if arm.phases is not None}


def _reasons(asked: Sequence[Asked], arms: Sequence[Arm]) -> list[str]:
    out = []
    for each in asked:
        ran = _of(arms, each, each.own_ratio)
        for name, words in (("decode", "decode"), ("prompt", "prompts")):
            why = why_fastest({engine: phases[name] for engine, phases in ran.items()}, words)
            out += [f"`{each.stem}`: {why}"] if why else []
    return out


def _by_ratio(asked: Sequence[Asked], arms: Sequence[Arm]) -> list[More]:
    """Two tables for each trace: tokens/s by engine and ratio, the fastest of each ratio in bold and named."""
    return [
        _ratio_table(
            each, [arm for arm in arms if arm.row["trace"] == each.stem], key, f"`{each.stem}`: {words} tokens/s"
        )
        for each in asked
        for key, words in (("tokens_per_s", "decode"), ("prompt_tokens_per_s", "prompt"))
    ]


def _ratio_table(asked: Asked, arms: Sequence[Arm], key: str, title: str) -> More:
    ratios = sorted({arm.row["ratio"] for arm in arms})
    speed = {
        (arm.row["engine"], arm.row["ratio"]): float(arm.row[key]) for arm in arms if arm.ranked and arm.row.get(key)
    }
    best = {ratio: max((s for (_, at), s in speed.items() if at == ratio), default=0.0) for ratio in ratios}
    engines = dict.fromkeys(engine for engine, _ in speed)
    rows: list[dict[str, Any]] = [{"engine": engine} for engine in engines]
    for row in rows:
        for ratio in ratios:
            found = speed.get((row["engine"], ratio))
            text = None if found is None else f"{found:,.2f}"
            row[f"{ratio}"] = f"**{text}**" if found and found == best[ratio] else text
    winners = {f"{r}": ", ".join(e for e in engines if speed.get((e, r)) == best[r]) for r in ratios}
    columns = [Column("engine", "engine")]
    columns += [Column(f"{r}", f"{r:.2f}{' (its own)' * (r == asked.own_ratio)}", 2) for r in ratios]
    return More(f"{title} by link rate / host read rate", columns, [*rows, {"engine": "fastest", **winners}])
