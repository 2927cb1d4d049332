"""Engines side by side: each as it behaves, in the same GPU memory on the same trace and machine."""

import re
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim import catalog
from sim.catalog.files import precision_bits
from sim.engines import FIT, behaving
from sim.errors import CatalogError, SpecError
from sim.experiments.fastest import Known, fastest, why_fastest
from sim.experiments.phases import PARTS, Phase, phase
from sim.experiments.scaled import is_scaled, scaled
from sim.experiments.tables import Column, More, Report, Row, parser, percent
from sim.flags import add_hardware, hardware_fields
from sim.memo import Kept
from sim.outcome.how_sure import key_of, overlap
from sim.outcome.marks import SYNTHETIC, machine_words
from sim.prepare import model_of, own_calibration
from sim.simulation import simulate, write
from sim.spec import RunSpec
from traces.command import out_folder
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.progress import counted

if TYPE_CHECKING:
    from sim.catalog.hardware_spec import Hardware
    from sim.machines.record import RunRecord

MEMO_BYTES = 1 << 28
SET_ASIDE = "0.3"  # of the requests, where nothing else is asked for
MOST_RATIO = 1_000_000
OURS = "# python -m sim.experiments engines "  # how its engines.csv begins
NO_ENGINE = "lru + fetch (no engine)"
REFERENCE = {"engine": "ideal", "cache": FIT, "eviction": "lru", "miss": "fetch"}
PHASES = {"decode": False, "prompt": True}  # whether its steps are prefill
SPEED_OF = {"decode": "tokens_per_s", "prompt": "prompt_tokens_per_s"}  # the summary's key
CAUSES = ("demand", "prefetch", "background", "admission", "stream")
COLUMNS = (
    Column("trace", "trace"),
    Column("ratio", "link/host", 2, csv_only=True),
    Column("engine", "engine"),
    Column("version", "version", csv_only=True),
    Column("tokens_per_s", "decode tokens/s", 2),
    Column("tokens_per_s_low", "80 % from", 2),
    Column("tokens_per_s_high", "80 % to", 2),
    Column("prompt_tokens_per_s", "prompt tokens/s", 2),
    Column("prompt_tokens_per_s_low", "prompts: 80 % from", 2, csv_only=True),
    Column("prompt_tokens_per_s_high", "prompts: 80 % to", 2, csv_only=True),
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
    "80 % from, to: between which 80 % of the engine's published speeds lie on machines that none of its costs came "
    "from (sim/catalog/intervals.toml), or as the file of an engine or machine states; -: not calibrated",
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
    known: dict[str, Known] | None = None

    @property
    def ranked(self) -> bool:
        return (
            self.summary is not None and self.row["engine"] != NO_ENGINE and self.summary["memory"]["fits"] is not False
        )


def report(argv: Sequence[str]) -> tuple[Report, str | None]:
    """(the report, --out). Raises SpecError, TraceError or CatalogError for bad input."""
    args = _flags().parse_args(argv)
    if args.out is not None:
        _refuse_foreign(out_folder(args.out))
    engines, hardware = _engines(args.engines), RunSpec.of({"trace": "", **hardware_fields(args)}).described()
    asked = _asked(args, hardware)
    memo = Kept(MEMO_BYTES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if args.out is None else args.out) / "hardware"
        machines = {each.stem: _machines(args, hardware, each, folder) for each in asked}
        cells = [(each, ratio, name) for each in asked for ratio, name in machines[each.stem].items()]
        arms = []
        for each, ratio, name in counted(cells, "setting", lambda cell: cell[0].stem):
            some = counted((*engines, NO_ENGINE), "engine", str, at_once=False)
            arms += _sorted([_arm(each, engine, name, ratio, memo) for engine in some])
    if args.out is not None:
        _keep(Path(args.out), arms, {name for each in machines.values() for name in each.values()})
    own = [arm.row for arm in arms if arm.row["own"]]
    foot = [*_reasons(asked, arms), *FOOT, _costs(hardware, args)]
    more = _by_ratio(asked, arms) if args.ratios else ()
    scaled = [arm.row for arm in arms if not arm.row["own"]]
    return Report("Engines side by side", _head(args, asked), COLUMNS, own, foot, more, scaled), args.out


def _refuse_foreign(out: Path) -> None:
    """Raises SpecError for a folder of runs that this command has not written."""
    mine = out / "engines.csv"
    if (out / "runs").exists() and not (mine.is_file() and mine.read_text(encoding="utf-8").startswith(OURS)):
        raise SpecError(f"out: {out}: holds runs that are not of this command; give another DIR")


def _keep(out: Path, arms: Sequence[Arm], machines: set[str]) -> None:
    """The runs, in place of those that an earlier command of this kind has left."""
    kept = set()
    for arm in arms:
        if arm.summary is not None and arm.record is not None:
            kept.add(folder := out / "runs" / _folder(arm.row))
            write(folder, arm.summary, arm.record, "none")
    for old in out.glob("runs/*"):
        if old not in kept and (old / "summary.json").is_file():
            shutil.rmtree(old)
    for file in out.glob("hardware/*.toml"):
        if str(file) not in machines and is_scaled(str(file)):
            file.unlink()


def _flags() -> Any:
    flags = parser("engines", __doc__ or "")
    flags.epilog = (
        "--out keeps every run in DIR/runs, too, and each machine of --ratios in DIR/hardware. What an earlier command "
        "of this kind has left there goes; a DIR whose runs are not of this command is refused."
    )
    flags.add_argument("--trace", nargs="+", required=True, metavar="FILE", help="routing traces, or names of samples")
    add_hardware(flags, "rtx4090")
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
    if not all(asked):
        raise SpecError(f"engines: {given!r}: an engine without a name; must be A,B,... of {', '.join(every)}")
    for name in asked:
        if catalog.engine(name) and behaving(name) is None:
            wrong = "has no behaviour, it is costs alone, which every run may have"
            raise SpecError(f"engines: {name}: {wrong}; must be of {', '.join(every)}")
    return list(
        dict.fromkeys(name if name.lower().endswith(".toml") else catalog.find("engine", name) for name in asked)
    )


def _asked(args: Namespace, hardware: "Hardware") -> list[Asked]:
    common = {**hardware_fields(args), "precision": catalog.precision(args.precision), "max_steps": args.max_steps}
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
        size = 0 if wrong else model_of(trace, "").expert_bytes(catalog.precision(args.precision))
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
        if ratio not in out:
            out[ratio] = str(scaled(args.hardware, hardware, ratio / asked.own_ratio, folder, asked.stem, ratio))
    return out


# --- what comes of it ---


def _arm(asked: Asked, engine: str, hardware: str, ratio: float | None, memo: Kept) -> Arm:
    fields = {**asked.fields, **(REFERENCE if engine == NO_ENGINE else {"engine": engine}), "hardware": hardware}
    if hardware != asked.fields["hardware"]:  # its file has the links at the rates that they were asked for, scaled
        fields.pop("link_gbps", None)
    shown = {"trace": asked.stem, "ratio": ratio, "own": hardware == asked.fields["hardware"], "engine": _label(engine)}
    try:
        spec = RunSpec.of(fields)
        out, record = simulate(spec, full=True, memo=memo)
    except (SpecError, CatalogError) as error:
        return Arm({**shown, "note": f"not run: {error}"})
    phases = {name: phase(record, prefill) for name, prefill in PHASES.items()}
    known = {name: _known(spec, out, prefill) for name, prefill in PHASES.items()}
    return Arm({**shown, **_figures(out, phases)}, out, replace(record, groups={}), phases, known)


def _known(spec: RunSpec, out: dict[str, Any], prefill: bool) -> Known:
    """What is known of a run beside its times."""
    engine, hardware = catalog.engine(spec.engine), spec.described()
    own = [f"{key.split('.')[-1]} {value}" for key, value in spec.set.items() if spec.miss in key.split(".")[:-1]]
    bulk, dense = prefill and spec.bulk != "none", engine.precision_of("dense", spec.precision)
    known = Known(
        rule=f"{spec.bulk} from {spec.bulk_rows} rows on, {spec.miss}" if bulk else spec.miss,
        parameters=", ".join(own),
        beside=spec.beside,
        overlapped=not spec.serial,
        slots=out["slots"]["total"],
        reserve_bytes=out["memory"].get("reserve", 0),
    )
    if hardware.gpu is None:  # durations given outright: nothing of an engine's costs
        return known
    return replace(
        known,
        page_locked=engine.page_locked,
        layer_ns=engine.layer_ns + engine.launches_per_layer * hardware.gpu.kernel_launch_ns,
        expert_ns=engine.expert_ns + engine.launches_per_expert * hardware.gpu.kernel_launch_ns,
        dense=dense,
        dense_bits=precision_bits(dense),
        dense_on_gpu=spec.dense_on_host is None,
    )


def _label(engine: str) -> str:
    return engine if engine == NO_ENGINE else catalog.engine(engine).name


def _figures(out: dict[str, Any], phases: dict[str, Phase]) -> dict[str, Any]:
    """The cells of one row."""
    told = out.get("engine") or {}
    row: dict[str, Any] = {name: told.get(name) for name in ("version", "link_gb_per_s", "host_gb_per_s", "words")}
    row |= {"tokens_per_s": out["tokens_per_s"], "prompt_tokens_per_s": phases["prompt"].tokens_per_s}
    for speed in SPEED_OF.values():
        row[f"{speed}_low"], row[f"{speed}_high"] = out.get(key_of(speed)) or (None, None)
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
    return row | {"note": "; ".join(note for note in out["notes"] if not note.startswith(SYNTHETIC))}


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
    machine = machine_words(hardware_fields(args))
    told = [
        f"the same for all: {machine}, experts in {asked[0].fields['precision']}, batch 1, and of each trace the "
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


def _costs(hardware: "Hardware", args: Namespace) -> str:
    name, machine = args.hardware, machine_words(hardware_fields(args))
    if hardware.measured is not None:
        return (
            f"durations from a calibration on {hardware.measured.device}, as {name} has them; no engine's costs in them"
        )
    if hardware.fixed is not None:
        return f"NOT CALIBRATED: durations are those that [fixed] of {name} gives outright; no engine's costs in them"
    rates = f"the rates that {machine} gives" if name.lower().endswith(".toml") else f"the catalog's rates of {machine}"
    return f"NOT CALIBRATED: durations are computed from {rates} and the catalog's costs of each engine"


def _reasons(asked: Sequence[Asked], arms: Sequence[Arm]) -> list[str]:
    out = []
    for each in asked:
        mine = [
            arm for arm in arms if arm.row["trace"] == each.stem and arm.row["ratio"] == each.own_ratio and arm.ranked
        ]
        for name, words in (("decode", "decode"), ("prompt", "prompts")):
            phases = {arm.row["engine"]: arm.phases[name] for arm in mine if arm.phases}
            known = {arm.row["engine"]: arm.known[name] for arm in mine if arm.known}
            why = why_fastest(phases, words, known)
            out += [f"`{each.stem}`: {why}{_tie(mine, SPEED_OF[name])}"] if why else []
        if not mine:
            out.append(f"`{each.stem}`: no engine ran: what each lacks stands in its note")
    return out


def _tie(arms: Sequence[Arm], speed: str) -> str:
    """Who cannot be told from the fastest."""
    ran = [(arm.row["engine"], arm.summary[speed], arm.summary.get(key_of(speed))) for arm in arms if arm.summary]
    (best, _, pair), *others = sorted(ran, key=lambda each: -(each[1] or 0))
    found = [name for name, _, other in others if overlap(pair, other)]
    return f". A tie, because their 80 % intervals overlap: {', '.join([best, *found])}" if found else ""


def _by_ratio(asked: Sequence[Asked], arms: Sequence[Arm]) -> list[More]:
    """Two tables for each trace: tokens/s by engine and ratio, the fastest of each ratio (and who ties with it) in bold
    and named. None where no engine had anything to do."""
    return [
        _ratio_table(each, mine, key, f"`{each.stem}`: {words} tokens/s")
        for each in asked
        for key, words in (("tokens_per_s", "decode"), ("prompt_tokens_per_s", "prompt"))
        if (mine := [arm for arm in arms if arm.row["trace"] == each.stem and arm.ranked and arm.row.get(key)])
    ]


def _ratio_table(asked: Asked, arms: Sequence[Arm], key: str, title: str) -> More:
    """arms: those that have a speed."""
    speeds: dict[float, dict[str, float]] = {}
    for arm in arms:
        speeds.setdefault(arm.row["ratio"], {})[arm.row["engine"]] = float(arm.row[key])
    ratios, first = sorted(speeds), {ratio: fastest(at) for ratio, at in speeds.items()}
    rows: list[dict[str, Any]] = [{"engine": engine} for engine in dict.fromkeys(arm.row["engine"] for arm in arms)]
    for row in rows:
        for ratio in ratios:
            speed = speeds[ratio].get(row["engine"])
            text = None if speed is None else f"{speed:,.2f}"
            row[f"{ratio}"] = f"**{text}**" if row["engine"] in first[ratio] else text
    winners = {f"{ratio}": f"{', '.join(names)}{' (within 1 %)' * (len(names) > 1)}" for ratio, names in first.items()}
    columns = [Column("engine", "engine")]
    columns += [Column(f"{r}", f"{r:.2f}{' (its own)' * (r == asked.own_ratio)}", 2) for r in ratios]
    return More(f"{title} by link rate / host read rate", columns, [*rows, {"engine": "fastest", **winners}])
