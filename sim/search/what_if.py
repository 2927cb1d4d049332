"""What would make an answer faster, and by how much: the same run once more on a machine, or at a precision, that
differs in one thing, its cache filled anew to the memory that there then is. Nothing here is an estimate."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sim.catalog.files import precision_bits
from sim.flags import flag_words
from sim.outcome.how_sure import NOT_CALIBRATED
from sim.outcome.report import prompt_rate
from sim.prepare import Setting, prepare
from sim.search.judging import Case, Rated, command
from sim.search.ties import ENGINE
from sim.spec import RunSpec
from sim.sweeps.answer import speed
from traces.errors import UserError
from traces.progress import doing

CARDS_GB = (6, 8, 12, 16, 24, 32, 48, 80, 96, 141, 192)  # of GPU memory as it is sold
NOTICED = 1.15  # the next card has at least so many times as much
RAM_FASTER, LINK_FASTER = 1.5, 2.0  # two more memory channels or the next DDR; the next PCIe
SMALLER = ("q8", "q6", "q5-k-m", "q4-k-m", "q3-k-m", "q2-k-file")  # a bit a weight apart, about
A_BIT = 0.5  # a smaller precision has at least so many fewer of a weight
WORTH = 0.005  # less of a difference is none
OUTPUTS = "changes what the model says"
Again = Callable[[Mapping[str, Any]], RunSpec]


class Change(NamedTuple):
    """what: for people; fields: of a run; outputs: whether the model then says something else."""

    what: str
    fields: Mapping[str, Any]
    outputs: bool = False


def would_help(case: Case, best: Rated, again: Again, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each change with its tokens/s, how many times as fast that is, its command; the fastest first, what cannot run
    last with its `error`. rows: of the table, in which another engine may be faster, and those that are none of it,
    which may lack RAM alone."""
    setting = prepare(best.spec, case.memo)
    told = [_told(case, best, again, change) for change in changes(setting, case.vram)]
    told += _other_engine(best, [row for row in rows if row["error"] is None])
    told += _more_ram(best, rows)
    return sorted(told, key=lambda row: (row["error"] is not None, -(row["ratio"] or 0.0)))


def changes(setting: Setting, vram: int) -> Iterator[Change]:
    """What may be changed of a machine that is not given outright, and of the weights."""
    hardware, spec = setting.hardware, setting.spec
    if hardware.durations is not None:
        return
    if not hardware.on_host:
        more = next((size for size in CARDS_GB if size * 1e9 > vram * NOTICED), None)
        if more is not None:  # else no card is larger
            yield Change(f"more VRAM, {more} GB", {"vram": f"{more}GB"})
    if hardware.host is not None:
        rate = round(hardware.host.read_rate() * RAM_FASTER, 1)
        yield Change(f"RAM {RAM_FASTER:g} x as fast, {rate:g} GB/s", {"host_gbps": rate})
    if hardware.link is not None and not hardware.on_host and not hardware.unified:
        now = _copies_at(setting)
        rate = round(now * LINK_FASTER, 1)
        what = f"a link {LINK_FASTER:g} x as fast, {rate:g} GB/s (of {now:.3g} that this engine's copies get)"
        yield Change(what, {"link_gbps": rate})
    bits = precision_bits(spec.precision)
    if smaller := next((name for name in SMALLER if precision_bits(name) <= bits - A_BIT), None):
        yield Change(f"precision {smaller}", {"precision": smaller}, outputs=True)


def _copies_at(setting: Setting) -> float:
    """GB/s at which the engine's copies of this size run, set-up times apart."""
    link, each = setting.hardware.link_for(setting.engine.page_locked), setting.engine.copies_per_expert
    return link.rate(setting.plan.expert_bytes / each)


def _told(case: Case, best: Rated, again: Again, change: Change) -> dict[str, Any]:
    doing(f"what would help: {change.what}")
    out = {"what": change.what, "changes": dict(change.fields), "outputs_change": change.outputs}
    figures = ("tokens_per_s", "prompt_tokens_per_s", "ratio", "prompt_ratio", "residents", "command", "flags")
    nothing = dict.fromkeys(figures)
    try:
        spec = again(change.fields)
        rated = case.rate(spec, best.words)
    except UserError as error:
        return out | nothing | {"error": str(error)}
    before, now = best.summary, rated.summary
    return out | {
        "tokens_per_s": now["tokens_per_s"],
        "prompt_tokens_per_s": prompt_rate(now),
        "ratio": _ratio(speed(now), speed(before)),
        "prompt_ratio": _ratio(prompt_rate(now), prompt_rate(before)),
        "residents": rated.residents,
        "command": command(spec),
        "flags": flags(best.spec, spec),
        "error": None,
    }


def flags(before: RunSpec, after: RunSpec) -> str:
    """What behind the command of `before` gives the run `after`: of a flag given twice the last one counts."""
    had = before.asked()
    return shlex.join(flag_words({name: value for name, value in after.asked().items() if had.get(name) != value}))


def _ratio(now: float | None, before: float | None) -> float | None:
    return now / before if now and before else None


def _other_engine(best: Rated, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fastest engine that exists, where that is another one and faster."""
    others = (row for row in rows if row["kind"] == ENGINE and row["name"] != best.spec.engine)
    row = max(others, key=speed, default=None)
    if row is None or best.spec.behaves is None or speed(row) <= speed(best.summary):
        return []
    tie = ", a tie" if row["tie"] else f", {NOT_CALIBRATED}" if row["tokens_per_s_interval"] is None else ""
    return [_of_row(best, row, f"another engine, {row['name']}{tie}", {"engine": row["name"]})]


def _more_ram(best: Rated, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fastest engine that the host's memory alone rules out, where it would be faster."""
    others = (row["with_ram"] for row in rows if "with_ram" in row and row["kind"] == ENGINE)
    row = max(others, key=speed, default=None)
    if row is None or speed(row) <= speed(best.summary):
        return []
    what = f"more RAM, {row['ram'].removesuffix('GB')} GB, for {row['name']}"
    return [_of_row(best, row, what, {"ram": row["ram"], "engine": row["name"]})]


def _of_row(best: Rated, row: Mapping[str, Any], what: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """A change that has run already, as a line of the table."""
    mine = best.summary
    return {
        "what": what, "changes": dict(changed), "outputs_change": False,
        "tokens_per_s": row["tokens_per_s"], "prompt_tokens_per_s": row["prompt_tokens_per_s"],
        "ratio": _ratio(speed(row), speed(mine)),
        "prompt_ratio": _ratio(row["prompt_tokens_per_s"], prompt_rate(mine)),
        "residents": row["residents"], "command": row["command"], "flags": shlex.join(flag_words(changed)),
        "error": None,
    }  # fmt: skip


def helps(row: Mapping[str, Any]) -> bool:
    """Whether a change makes generating or reading prompts faster by what is worth a word."""
    return any((row[key] or 0.0) > 1 + WORTH for key in ("ratio", "prompt_ratio"))


def words_of(row: Mapping[str, Any]) -> str:
    """What a change is, and what it costs beside money."""
    return f"{row['what']}{f' ({OUTPUTS})' if row['outputs_change'] else ''}"
