"""The first screen of a recommendation as text: the answer, its command, the best few, what holds it back and what
would help. What stands in the object at length is said here once; everything else is in `sim.search.advice`."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sim.catalog.intervals import LEVEL
from sim.outcome.how_sure import NOT_CALIBRATED
from sim.outcome.marks import SYNTHETIC
from sim.search.ties import GROUPS, POLICY, SURE, UNSURE, UNWRITTEN
from sim.search.what_if import helps, words_of
from sim.sweeps.answer import speed

SHOWN = {SURE: 6, UNSURE: 3, UNWRITTEN: 3}  # rows of the table, by group
TITLES = {
    SURE: "",
    UNSURE: "not calibrated: nobody knows how far off these speeds are",
    UNWRITTEN: "nobody has built these: {policies}engines of papers",
}
POLICIES = {"best": "best policy", "next best": "next best policy"}
UNCHECKED = "not checked: whether an engine supports this GPU and this model"
WIDTH = 24  # of a row's name
Told = Mapping[str, Any]


def first_screen(out: Told) -> list[str]:
    """The lines."""
    answer = out["answer"]
    return [
        _answer(answer),
        *_commands(out, answer),
        *_of_the_tie(out["table"]),
        *([f"  {UNCHECKED}"] if any(row["kind"] != POLICY for row in out["table"]) else []),
        *_loud(out),
        "",
        *_table(out["table"]),
        "",
        f"held back by  {answer['verdict']}",
        *_would_help(out["would_help"]),
    ]


def _answer(answer: Told) -> str:
    """Who, how fast between what, and the memory it takes."""
    whole = "No offloading needed, all experts fit the GPU. " if answer["whole"] else ""
    prompts = answer["prompt_tokens_per_s"]
    read = "" if prompts is None else f", prompts {prompts:,.2f}/s{_between(answer, 'prompt_tokens_per_s')}"
    return f"{whole}{who(answer)}: {_speed(answer)}{read}; {_memory(answer)}"


def who(row: Told) -> str:
    """An engine by name, with its setting where several are compared; a policy in its words."""
    if row["kind"] == "policy":
        return f"policy {row['words']}" if row["name"] == "best" else row["name"]
    return f"{row['name']}, {row['setting']}" if "setting" in row else str(row["name"])


def _speed(answer: Told) -> str:
    if answer["tokens_per_s"] is None:
        return f"{answer['total_tokens_per_s']:,.2f} tokens/s with prompts (the trace generates none)"
    return f"{answer['tokens_per_s']:,.2f} tokens/s{_between(answer, 'tokens_per_s')}"


def _between(answer: Told, of: str) -> str:
    pair = answer[f"{of}_interval"]
    if pair is not None:
        return f" [{100 * LEVEL:g} %: {_pair(pair)}]"
    return f" [{NOT_CALIBRATED}]" if answer["catalog_costs"] and of == "tokens_per_s" else ""


def _memory(answer: Told) -> str:
    parts = (("VRAM", "vram_bytes", "vram_given_bytes"), ("RAM", "ram_bytes", "ram_given_bytes"))
    told = []
    for name, taken, given in parts:
        if answer[taken] is not None:
            of = "" if answer[given] is None else f" of {answer[given] / 1e9:.1f}"
            told.append(f"{name} {answer[taken] / 1e9:.1f}{of} GB")
    return ", ".join(told)


def _commands(out: Told, answer: Told) -> list[str]:
    """What reruns it here, behind what makes its trace where there was none; and how the engine itself is told."""
    made = [f"  {out['made']['command']}"] if "made" in out else []
    own = [f"  the engine itself: {answer['own_command']}"] if answer["own_command"] else []
    resident = f"  resident: {answer['residents']}; a prompt in steps of {answer['prefill_chunk']:,} tokens"
    return [*made, f"  {answer['command']}", *own, resident]


def _of_the_tie(rows: Sequence[Told]) -> list[str]:
    """Who is the fastest of those that tie, where that is not the answer."""
    tied = [row for row in rows if row["tie"]]
    row = max(tied, key=speed, default=rows[0])
    return [] if row is rows[0] else [f"  fastest of the tie: {row['name']}, {_short(speed(row))}"]


def _title(group: str, rows: Sequence[Told]) -> str:
    """Of policies what is not an engine's: their speeds and sizes are no engine's that stores dense weights smaller."""
    row = next((row for row in rows if row["kind"] == POLICY), None)
    if row is None:
        return TITLES[group].format(policies="")
    costs = "no overhead" if row["costs_of"] == "ideal" else f"costs of {row['costs_of']}"
    return TITLES[group].format(policies=f"policies ({costs}, dense weights in {row['dense_precision']}), ")


def _loud(out: Told) -> list[str]:
    """What must not be missed of the answer: where the routing is from, what does not fit, what is lost."""
    made = [out["made"]["said"]] if "made" in out else []
    return [f"! {note}" for note in (*made, *out["answer"]["notes"]) if not (made and note.startswith(SYNTHETIC))]


def _table(rows: Sequence[Told]) -> list[str]:
    """The best few of each group, in 100 columns."""
    head = f"{'':4}{'':{WIDTH}} {'tokens/s':>9} {'80 % between':>13} {'prompts/s':>9} {'80 % between':>13}"
    lines = [f"{head} {'on GPU':>6} {'VRAM':>5} {'RAM':>5} {'loss':>4}"]
    for group in GROUPS:
        mine = [row for row in rows if row["group"] == group]
        lines += [f"    {title}"] if mine and (title := _title(group, mine)) else []
        lines += [line for row in mine[: SHOWN[group]] for line in _row(row)]
        lines += [f"    and {left} more (--json)"] if (left := len(mine) - SHOWN[group]) > 0 else []
    if any(row["tie"] for row in rows):
        lines.append("    = a tie: the intervals of these and of the fastest overlap; first the simplest of them")
    return lines


def _row(row: Told) -> list[str]:
    """The line; of a setting whose name is too long for it, that under it."""
    whole = str(row.get("differs") or POLICIES.get(row["name"], row["name"]))
    name = whole if len(whole) <= WIDTH else f"{whole[: WIDTH - 1]}~"
    more = textwrap.wrap(whole, 94) if "differs" in row and name != whole else []
    mark = "=" if row["tie"] else " "
    figures = " ".join(
        f"{_short(row[key]):>9} {_pair(row[f'{key}_interval']):>13}" for key in ("tokens_per_s", "prompt_tokens_per_s")
    )
    sizes = " ".join(f"{_gigabytes(row[key]):>5}" for key in ("vram_bytes", "ram_bytes"))
    line = f"{row['rank']:>2}{mark} {name:<{WIDTH}} {figures} {row['share']:>6.0%} {sizes} {_loss(row):>4}"
    return [line, *(f"{'':6}{part}" for part in more)]


def _short(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.2f}"


def _pair(pair: Sequence[float] | None) -> str:
    """Three digits are more than anybody knows."""
    return "-" if pair is None else "-".join(f"{end:,.0f}" if end >= 100 else f"{end:.3g}" for end in pair)


def _gigabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.1f}"


def _loss(row: Told) -> str:
    """Of the router weight; `late`: nothing is lost, but some of it comes a layer late."""
    lost = row["lost_router_weight"]
    return f"{lost:.0%}" if lost >= 0.005 else "<1%" if lost else "late" if row["deferred"] else "0"


def _would_help(rows: Sequence[Told]) -> list[str]:
    """What makes it faster, by how much; then, in a line, what does not; then what cannot be run."""
    ran = [row for row in rows if row["error"] is None]
    useful = [f"{_times(row)}  {words_of(row)}; {row['flags']}" for row in ran if helps(row)]
    useless = [f"{row['what']}{_slower(row)}" for row in ran if not helps(row)]
    return [
        *(f"{'' if at else 'would help':<13} {line}" for at, line in enumerate(useful)),
        *([f"{'no change':<13} {'; '.join(useless)}"] if useless else []),
        *(f"{'not run':<13} {row['what']}: {row['error']}" for row in rows if row["error"] is not None),
    ]


def _times(row: Told) -> str:
    """`80.20 tokens/s, 1.42 x; prompts 2.10 x`."""
    both = ((f"{row['tokens_per_s'] or 0:,.2f} tokens/s, ", row["ratio"]), ("prompts ", row["prompt_ratio"]))
    return "; ".join(f"{what}{ratio:.2f} x" for what, ratio in both if ratio is not None)


def _slower(row: Told) -> str:
    """A change for the worse is none that helps, but is said."""
    return f" ({row['ratio']:.2f} x)" if row["ratio"] is not None and row["ratio"] < 0.995 else ""
