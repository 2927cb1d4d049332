"""What `sim.recommend` says first, as an object: the answer, the table that it heads, and what would help."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sim.outcome.report import prompt_rate
from sim.prepare import prepare
from sim.search.judging import Case, Rated
from sim.search.own_command import own_command
from sim.search.ties import ranked
from sim.search.what_if import Again, would_help
from sim.spec import RunSpec
from traces.progress import doing

Way = tuple[RunSpec, Again]  # a run, and the same with something changed


def first_screen(case: Case, rows: Iterable[Mapping[str, Any]], way_of: Callable[[str], Way]) -> dict[str, Any]:
    """answer: the first row of the table, run once more here, with its verdict; table: see `ranked`, share: of the
    experts that have a slot; would_help: see `sim.search.what_if`. rows: lines of a table (sim.search.side_by_side);
    way_of: of a row's key, or name."""
    doing("the answer, once more")
    rows = list(rows)
    table = [{**row, "share": row["slots"] / _experts(case)} for row in ranked(rows)]
    spec, again = way_of(table[0].get("key", table[0]["name"]))
    rated = case.rate(spec, table[0]["words"])
    found = would_help(case, rated, again, [*table, *(row for row in rows if row["error"] is not None)])
    return {
        "answer": _answer(case, rated, table[0]),
        "table": [{name: value for name, value in row.items() if name != "key"} for row in table],
        "would_help": found,
    }


def _answer(case: Case, rated: Rated, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what a table has no column for. own_command: of the engine itself; whole: every expert is on the
    GPU; vram_given_bytes, ram_given_bytes: what there is."""
    summary, setting = rated.summary, prepare(rated.spec, case.memo)
    if summary["tokens_per_s"] != row["tokens_per_s"] or prompt_rate(summary) != row["prompt_tokens_per_s"]:
        raise RuntimeError(f"{rated.spec}: {summary['tokens_per_s']} tokens/s here, {row['tokens_per_s']} in the table")
    return {
        **{name: value for name, value in row.items() if name not in ("key", "rank")},
        "whole": row["share"] >= 1,
        "own_command": own_command(setting),
        "verdict": summary["verdict"],
        "notes": summary["notes"],
        "vram_given_bytes": case.vram,
        "ram_given_bytes": setting.ram,
        "prefill_chunk": rated.spec.prefill_chunk,
        "spec": rated.spec.saved(),
    }


def _experts(case: Case) -> int:
    """Of all MoE layers."""
    trace = case.setting.trace
    return trace.n_moe_layers * trace.n_experts


def setting_words(words: str) -> str:
    """What an engine's words say is where, and what its user set."""
    return f"{words.partition(': ')[2].partition(',')[0].partition('; you set ')[0]}; {differing_words(words)}"


def differing_words(words: str) -> str:
    """What the user of an engine set, alone: by that the settings of a table differ."""
    return words.partition("; you set ")[2] or "as it comes"
