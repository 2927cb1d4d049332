"""A run's intervals and counters as the events of a timeline (analysis.timeline says what stands where)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.reading.run import Run
from analysis.timelines.asked import NOTHING, Asked
from analysis.timelines.chrome_json import arrows, counts, instants, names, slices
from analysis.timelines.counters import Counter, counters
from analysis.timelines.slowing import how_sure
from analysis.timelines.tracks import ADMISSION, Slices, Tracks, tracks, window
from sim import __version__
from sim.core.plan import CAUSES, OUTCOMES, PLACES
from sim.machines.record import RunRecord
from sim.outcome.marks import machine_words
from sim.outcome.summary import STALLS

Int = npt.NDArray[np.int64]
Args = dict[str, tuple[str, Any]]  # of slices: name -> (template of a value, column)
GPU, HOST = 0, 1000  # GPUs are numbered as devices, as in Kineto; thread 0 of process 0 is no thread to Perfetto
STEPS, LAYERS, COMPUTE, LINK = ((GPU, tid) for tid in (1, 2, 7, 8))
SLOWED = (GPU, 9)
CPU = (HOST, 1)
THREADS = {STEPS: "steps", LAYERS: "layers", COMPUTE: "compute", LINK: "H2D link 0", CPU: "CPU experts"}
COLOURS = ("terrible", "bad", "yellow")  # of stalls, in chrome://tracing; Perfetto colours by name
BROUGHT = (*CAUSES, "resident")
WANTED = ("hit", "late", "miss")
LOW = ("", " low")  # a low-precision copy
RAN = ("", "", " remote", "", " deferred")  # what the name of an execution ends with, by its place
SLOT, STAGE, REMOTE = (PLACES.index(name) for name in ("slot", "stage", "remote"))


@dataclass(frozen=True)
class Context:
    """What the record does not say: slots in use before time 0, MoE layers x experts of a layer, what was asked for,
    and what to call things."""

    first_slots: int
    layers: int
    n_experts: int
    gpu: str = "GPU"
    other: dict[str, Any] | None = None
    asked: Asked = NOTHING

    @staticmethod
    def of(run: Run) -> "Context":
        """From a run's summary."""
        spec, first = run.spec, run.summary["start"]["residents"]
        how = "measured" if run.measured else "simulated"
        other = {
            "made_by": f"moe-offload-sim {__version__}",
            "machine": f"{run.summary['machine']} ({how})",
            "trace": f"{spec['trace']} ({run.trace['model']}, {run.trace['hash']})",
            "policies": {key: spec[key] for key in ("cache", "eviction", "prefetch", "miss", "rerank") if key in spec},
            "notes": run.summary["notes"],
        }
        sizes = run.trace["moe_layers"], run.trace["n_experts"]
        return Context(first, *sizes, f"{machine_words(spec)}, {how}", other, Asked.of(spec, run.measured))


def events(record: RunRecord, context: Context, first: int = 0, last: int | None = None) -> Iterator[str]:
    """The events of steps `first` to before `last` (None: all), one JSON object each.

    Slices that reach into these steps are whole; an arrow is there when both of its slices are.
    """
    every, n = tracks(record, context.asked), len(record.steps["begin_ns"])
    last = n if last is None else last
    shown = every if (first, last) == (0, n) else window(every, record, first, last)
    yield from names({GPU: f"GPU 0: {context.gpu}", HOST: "host"}, _threads(every))
    yield from _annotations(shown, record)
    yield from _compute(shown, record)
    yield from _experts(shown.experts, COMPUTE, "kernel", record)
    yield from _experts(shown.host, CPU, "cpu_op", record)
    yield from _copies(shown.copies, context)
    yield from _by_rules(shown, context)
    yield from _arrows(shown)
    begin, end = int(record.steps["begin_ns"][first]), int(record.steps["end_ns"][last - 1])
    for counter in counters(record, every, context.first_slots, context.asked):
        at, values = _between(counter, begin, end)
        yield from counts(GPU, counter.name, at, values)


def _threads(every: Tracks) -> dict[tuple[int, int], str]:
    """What they are called; the slowed link stands below the link, where there is one."""
    if not len(every.slowed):
        return THREADS
    link = {LINK: THREADS[LINK], SLOWED: f"{THREADS[LINK]}, slowed by the host"}
    return {place: text for place, text in THREADS.items() if place != CPU} | link | {CPU: THREADS[CPU]}


def _between(counter: Counter, begin: int, end: int) -> tuple[Int, dict[str, Any]]:
    """The values from `begin` to `end`, the first of them as it stands at `begin`."""
    lo = max(0, int(np.searchsorted(counter.at, begin, "right")) - 1)
    hi = int(np.searchsorted(counter.at, end, "right"))
    at = np.maximum(counter.at[lo:hi], begin)
    return at, {series: column[lo:hi] for series, column in counter.values.items()}


def _number(column: Any) -> tuple[str, Any]:
    return "%d", column


def _word(words: Sequence[str], codes: Int) -> tuple[str, Any]:
    return '"%s"', np.array(words, object)[codes]


def _ids(part: Slices, *columns: str) -> Args:
    return {name: _number(part.of[name]) for name in columns}


def _annotations(shown: Tracks, record: RunRecord) -> Iterator[str]:
    """Steps and layers."""
    s, v = shown.steps, shown.layers
    args = {"kind": _word(("decode", "prefill"), s.of["prefill"]), "rows": _number(s.of["rows"])}
    args["counted"] = _word(("no: warm-up", "yes"), (s.of["step"] >= record.warmup_steps).astype(np.int64))
    yield from slices(STEPS, "gpu_user_annotation", ("step %d", (s.of["step"],)), s.begin, s.end, args)
    args = _ids(v, "step", "layer", "hits", "late", "misses")
    yield from slices(LAYERS, "gpu_user_annotation", ("L%d", (v.of["layer"],)), v.begin, v.end, args)


def _compute(shown: Tracks, record: RunRecord) -> Iterator[str]:
    """Everything on the GPU but its experts. What lasts no time is left out."""
    kinds = (
        ("dense", "kernel", "dense", shown.dense),
        ("decide", "decide", "decide", shown.decide),
        ("overhead", "kernel", "experts", shown.overhead),
        ("cpu_wait", "stall", "cpu_wait", shown.cpu_wait),
        ("head", "kernel", "head", shown.head),
    )
    for name, category, part, found in kinds:
        found = found.where(found.end > found.begin)
        args = _ids(found, *("step", "layer") if "layer" in found.of else ("step",))
        args["part"] = (f'"{part}"%.0s', found.begin)  # the same word for all: its column is not shown
        yield from slices(COMPUTE, category, (name, ()), found.begin, found.end, args)
    for cause, name in enumerate(STALLS):
        found = shown.stall.where(shown.stall.of["cause"] == cause)
        args = _ids(found, "step", "layer") | {
            "part": ('"stall"%.0s', found.begin),
            "cause": _word(STALLS, found.of["cause"]),
        }
        yield from slices(COMPUTE, "stall", (f"stall: {name}", ()), found.begin, found.end, args, COLOURS[cause])


def _experts(x: Slices, place: tuple[int, int], category: str, record: RunRecord) -> Iterator[str]:
    """Executions. cause: of the copy that brought the expert, or that it was there all along; wanted: what it was at
    the routed instant; bytes: the weights that it reads."""
    alone = np.where(x.of["stand_in"] == 0, 0, np.where(x.of["stand_in"] < x.of["tokens"], 1, 2))
    args = _ids(x, "step", "layer", "expert", "tokens")
    args["bytes"] = _number(np.where(x.of["low"], record.low_bytes, record.expert_bytes))
    if place == COMPUTE:
        args["cause"] = _word(BROUGHT, x.of["cause"])
        args["part"] = ('"experts"%.0s', x.begin)
    args["wanted"] = _word(WANTED, x.of["wanted"])
    args["as"] = _word(("itself", "itself and stand-in", "stand-in"), alone)
    args["stand_in_tokens"] = _number(x.of["stand_in"])
    yield from slices(place, category, _named(x), x.begin, x.end, args)


def _copies(c: Slices, context: Context) -> Iterator[str]:
    """Transfers that moved data. A victim is named like the expert it was."""
    for part in (c.where(c.of["chunk"] < 0), c.where(c.of["chunk"] >= 0)):
        yield from _pieces(part, context)


def _pieces(c: Slices, context: Context) -> Iterator[str]:
    """The same of those that went whole, or in chunks."""
    admitted, place = c.of["cause"] == ADMISSION, c.of["place"]
    for word, mine in (("", (place == SLOT) & ~admitted), ("admit ", admitted)):
        found = c.where(mine)
        args = _copied(found, _went(found, context))
        yield from slices(LINK, "gpu_memcpy", _named(found, word), found.begin, found.end, args)
    found = c.where(place == REMOTE)
    yield from slices(LINK, "gpu_memcpy", _named(found, "remote "), found.begin, found.end, _copied(found, {}))
    found = c.where(place == STAGE)
    args = _copied(found, {"experts": _number(found.of["n"]), "unwanted": _number(found.of["unwanted"])})
    yield from slices(LINK, "gpu_memcpy", _streamed(found), found.begin, found.end, args)


def _copied(c: Slices, more: Args) -> Args:
    """What there is to say of every transfer over the link, and what more there is of some."""
    spent = np.maximum(c.end - c.begin, 1)
    return {
        "device": ("0%.0s", c.begin),
        "stream": (f"{LINK[1]}%.0s", c.begin),
        "correlation": _number(c.of["row"]),
        **_ids(c, "layer", "expert", "bytes"),
        "memory bandwidth (GB/s)": ("%.3f", c.of["bytes"] / spent),
        "cause": _word(CAUSES, c.of["cause"]),
        "promoted": _word(("no", "yes"), c.of["promoted"]),
        "queue_wait_us": ("%.3f", (c.begin - c.of["queued"]) / 1000),
        **more,
        **(_ids(c, "chunk") if len(c) and c.of["chunk"][0] >= 0 else {}),
        "outcome": _word(OUTCOMES, c.of["outcome"]),
    }


def _went(c: Slices, context: Context) -> Args:
    """Whose slot a copy took."""
    copy, expert = np.divmod(c.of["victim"], context.layers * context.n_experts)
    layer, expert = np.divmod(expert, context.n_experts)
    rows = zip(c.of["victim"].tolist(), layer.tolist(), expert.tolist(), copy.tolist(), strict=True)
    victims = [f'"L{a}.E{b}{LOW[low]}"' if victim >= 0 else "null" for victim, a, b, low in rows]
    return {"victim": ("%s", np.array(victims, object))}


def _streamed(c: Slices) -> tuple[str, tuple[Any, ...]]:
    """What a copy into a stage is called: the experts that it brings, and whether nobody ran any of them."""
    last = c.of["expert"] + c.of["n"] - 1
    several = [f"..E{e}" if n > 1 else "" for e, n in zip(last.tolist(), c.of["n"].tolist(), strict=True)]
    unwanted = np.array(("", " unwanted"), object)[(c.of["unwanted"] == c.of["n"]).astype(np.int64)]
    return "stream L%d.E%d%s%s", (c.of["layer"], c.of["expert"], np.array(several, object), unwanted)


def _by_rules(shown: Tracks, context: Context) -> Iterator[str]:
    """What only runs with plan.on_miss have: what the host pays once a visit, admissions that found no room, and when
    the host slowed the link."""
    v, r, w = shown.host_visits, shown.rejected, shown.slowed
    yield from slices(CPU, "cpu_op", ("cpu visit L%d", (v.of["layer"],)), v.begin, v.end, _ids(v, "step", "layer"))
    about = {"correlation": _number(r.of["row"]), **_ids(r, "layer", "expert")}
    name = ("admission rejected L%d.E%d", (r.of["layer"], r.of["expert"]))
    yield from instants(LINK, "admission", name, r.begin, about)
    about = {"correlation": _number(w.of["row"]), **_ids(w, "layer", "expert")}
    about["sure"] = (f'"{how_sure(context.asked)}"%.0s', w.begin)
    yield from slices(SLOWED, "slowed", ("slowed by the host", ()), w.begin, w.end, about, "bad")


def _named(part: Slices, front: str = "") -> tuple[str, tuple[Any, ...]]:
    """What a slice of an expert is called."""
    words = np.array(LOW, object)[part.of["low"]], np.array(RAN, object)[part.of["place"]]
    return f"{front}L%d.E%d%s%s", (part.of["layer"], part.of["expert"], *words)


def _arrows(shown: Tracks) -> Iterator[str]:
    """From each copy to the first execution that it serves, where both are shown."""
    uses = shown.experts.where(
        (shown.experts.of["first"] == 1) & np.isin(shown.experts.of["run"], shown.copies.of["run"])
    )
    order = np.argsort(shown.copies.of["run"], kind="stable")  # of one in chunks from the last
    run = shown.copies.of["run"][order]
    left = shown.copies.begin[order][np.searchsorted(run, uses.of["run"], "right") - 1]
    yield from arrows(LINK, COMPUTE, uses.of["copy"], left, uses.begin)


def head(name: str, context: Context, gpu_bytes: int | None = None) -> dict[str, Any]:
    """What stands in front of the events, as in Kineto's files."""
    return {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": context.gpu, "totalGlobalMem": gpu_bytes}],
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": 0,
        "traceName": name,
        "otherData": context.other or {},
    }
