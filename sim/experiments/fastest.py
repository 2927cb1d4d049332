"""Why one engine is faster than another: the parts of the time that make up its lead, and what is known of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose, log

from sim.experiments.phases import PARTS, Phase
from sim.outcome.how_sure import TIE

LITTLE = 0.1  # of a lead: parts that come to no more together are not named
AS_MUCH = 0.01  # two amounts of work that differ by no more are the same
NEAR = 1.5  # work explains a time if its ratio is that of the times within this factor,
HALF = 0.5  # and at least so much of it on a logarithmic scale
MOST_DIGITS = 9
WAITS = ("stall", "cpu_wait")
SPENT = {
    ("stall",): "waiting for the link",
    ("cpu_wait",): "waiting for the host",
    WAITS: "waiting for the link and the host together",
    ("experts",): "of the GPU's time for experts",
    ("rest",): "of dense parts and the engine's own work",
}


@dataclass(frozen=True)
class Known:
    """What is known of an engine's run beside its times, for one phase. rule: what it does on a miss there, by its
    parameters; beside: the GPU works while the host does; overlapped: streamed experts do not hold it up; slots,
    reserve_bytes: of its memory. Of its costs, None where durations are given outright and it has none:
    page_locked: where its experts lie; layer_ns, expert_ns: its own time; dense, dense_bits: of dense weights;
    dense_on_gpu: in every layer."""

    rule: str
    parameters: str
    beside: bool
    overlapped: bool
    slots: int
    reserve_bytes: int
    page_locked: bool | None = None
    layer_ns: float | None = None
    expert_ns: float | None = None
    dense: str | None = None
    dense_bits: float = 0.0
    dense_on_gpu: bool = True


def fastest(speeds: Mapping[str, float]) -> list[str]:
    """Who is fastest, first, and who ties with it."""
    top = max(speeds.values(), default=0.0)
    tied = [name for name, speed in speeds.items() if speed * (1 + TIE) >= top]
    return sorted(tied, key=lambda name: -speeds[name])


def why_fastest(phases: Mapping[str, Phase], what: str, known: Mapping[str, Known] | None = None) -> str | None:
    """A sentence: who is fastest, and the parts of the time that make up its lead over the next; a tie has no winner.
    None where nobody had anything to do. what: of the phase (`decode`, `prompts`); known: of some of the engines."""
    speeds = {name: speed for name, each in phases.items() if (speed := each.tokens_per_s)}
    if not speeds:
        return None
    tied, order = fastest(speeds), sorted(speeds, key=lambda name: -speeds[name])
    best, others = order[0], [name for name in order if name not in tied]
    if len(tied) > 1:
        figures = [f"{name} ({speeds[name]:,.2f} tokens/s)" for name in tied]
        said = f"no winner in {what}: {_and(figures)} are within {100 * TIE:g} %"
    else:
        said = f"{best} is fastest in {what}, {speeds[best]:,.2f} tokens/s"
    if not others:
        return said if len(tied) > 1 else f"{said}; nobody else ran"
    following = others[0]
    said += f". {best} is" if len(tied) > 1 else ","
    lead = _lead(phases[best], phases[following], best, following, known or {})
    said += f" {speeds[best] / speeds[following]:.2f} x {following}, {lead}"
    return said + _rest(phases[best], {name: phases[name] for name in others[1:]}, best)


# --- the parts of a lead ---


def _saved(best: Phase, other: Phase, parts: Iterable[str]) -> float:
    """ms of a token that `other` spends on these and `best` does not."""
    return sum(other.ms(part) - best.ms(part) for part in parts)


def _all(best: Phase, other: Phase) -> list[tuple[str, ...]]:
    """Every part, the largest change first; the two waits are one where one is paid with the other."""
    lead = abs(_saved(best, other, PARTS))
    stall, wait = (_saved(best, other, [part]) for part in WAITS)
    paid = stall * wait < 0 and min(abs(stall), abs(wait)) > LITTLE * lead
    parts = [WAITS] if paid else [("stall",), ("cpu_wait",)]
    return sorted([*parts, ("experts",), ("rest",)], key=lambda each: -abs(_saved(best, other, each)))


def _named(best: Phase, other: Phase) -> list[tuple[str, ...]]:
    """Those without which the lead is not accounted for."""
    parts, spare = _all(best, other), LITTLE * _saved(best, other, PARTS)
    while (least := abs(_saved(best, other, parts[-1]))) <= spare:
        parts.pop()
        spare -= least
    return parts


def _lead(best: Phase, other: Phase, mine: str, theirs: str, known: Mapping[str, Known]) -> str:
    """`3.00 ms a token less: 4.00 ms less waiting for the host (...); 1.00 ms more ...; together 3.00 ms less`."""
    two = (known[mine], known[theirs]) if mine in known and theirs in known else None
    parts = _named(best, other)
    told = [_part(best, other, part, two) for part in parts]
    if len(parts) > 1:
        told.append(f"together {_change(_saved(best, other, [name for part in parts for name in part]))}")
    told += _left(best, other, parts)
    told += _resident(best, other, two)
    return f"{_apart(_saved(best, other, PARTS))[0]} ms a token less: {'; '.join(told)}"


def _left(best: Phase, other: Phase, parts: list[tuple[str, ...]]) -> list[str]:
    """What the parts that are named do not account for."""
    others = [name for name in PARTS if not any(name in part for part in parts)]
    left = _saved(best, other, others)
    return [f"{_change(left)} of the rest"] if abs(left) > TIE * _saved(best, other, PARTS) else []


def _change(saved: float) -> str:
    return f"{_apart(abs(saved))[0]} ms {'less' if saved > 0 else 'more'}"


def _part(best: Phase, other: Phase, parts: tuple[str, ...], two: tuple[Known, Known] | None) -> str:
    text = f"{_change(_saved(best, other, parts))} {SPENT[parts]}"
    if len(parts) == 1:
        return f"{text} ({_instead(best.ms(*parts), other.ms(*parts))}){_because(best, other, parts[0], two)}"
    halves, differs = list[str](), dict[str, None]()
    for part, word in zip(parts, ("link", "host"), strict=True):
        said = _by_work(best, other, part)
        halves.append(f"{word} {_instead(best.ms(part), other.ms(part))}{said}")
        differs |= dict.fromkeys(_otherwise(best, other, part, two) if two and not said else [])
    return f"{text} ({'; '.join(halves)})" + (f", with {_and([*differs])}" if differs else "")


# --- what is known of a part ---


def _works(best: Phase, other: Phase, part: str) -> tuple[float, float, str]:
    """Amounts of a token, and what they are; 0 of what is the engine's own."""
    key, unit = {
        "stall": ("h2d_bytes", "MB a token over the link"),
        "cpu_wait": ("on_host", "experts a token on the host"),
        "experts": ("on_gpu", "experts a token on the GPU"),
        "rest": ("", ""),
    }[part]
    if part == "experts" and best.remote + other.remote:
        key, unit = "remote", "experts a token read over the link"
    by = 1e6 if part == "stall" else 1
    mine, theirs = (getattr(each, key) / each.tokens / by if key else 0.0 for each in (best, other))
    return mine, theirs, unit


def _because(best: Phase, other: Phase, part: str, two: tuple[Known, Known] | None) -> str:
    """Its work where that explains the change, else what the two do otherwise, else whether it is as much work."""
    if said := _by_work(best, other, part):
        return said
    if two and (differs := _otherwise(best, other, part, two)):
        return f", with {_and(differs)}"
    mine, theirs, unit = _works(best, other, part)
    if isclose(mine, theirs, rel_tol=AS_MUCH):
        return ", with as much to do" if mine else ""
    return f", which {_instead(mine, theirs)} {unit} do not explain"


def _by_work(best: Phase, other: Phase, part: str) -> str:
    """Nothing where that does not explain it."""
    mine, theirs, unit = _works(best, other, part)
    explained = _explains([mine, theirs], [best.ms(part), other.ms(part)])
    return f", because of {_instead(mine, theirs)} {unit}" if explained else ""


def _explains(work: Sequence[float], times: Sequence[float]) -> bool:
    """Whether the ratio of the work is near that of the times."""
    if not (min(work) > 0 and min(times) > 0):
        return [each > 0 for each in work] == [each > 0 for each in times] and max(work) > 0
    by_work, by_time = (log(mine / theirs) for mine, theirs in (work, times))
    return abs(by_work - by_time) <= log(NEAR) and by_time != 0 and by_work / by_time >= HALF


def _otherwise(best: Phase, other: Phase, part: str, two: tuple[Known, Known]) -> list[str]:
    """What the two engines do otherwise there, of what may make that part less (or more)."""
    less = best.ms(part) < other.ms(part)
    mine, theirs = two
    copies, hosted = best.h2d_bytes + other.h2d_bytes > 0, best.on_host + other.on_host > 0
    found = []
    if part in WAITS and mine.rule != theirs.rule:
        found.append(f"{mine.rule} on a miss instead of {theirs.rule}")
    elif part in WAITS and mine.parameters != theirs.parameters:
        found.append(f"{mine.rule} with {mine.parameters} instead of {theirs.parameters}")
    for relevant, key, (good, bad) in (
        (
            part == "cpu_wait" and hosted,
            "beside",
            ("a GPU that works beside the host", "a GPU that waits for the host"),
        ),
        (
            part == "stall" and copies,
            "overlapped",
            ("experts copied beside the GPU's work", "experts copied in turn with its work"),
        ),
        (part == "stall" and copies, "page_locked", ("experts in page-locked memory", "experts in pageable memory")),
    ):
        a, b = getattr(mine, key), getattr(theirs, key)
        if relevant and a != b and a == less:
            found.append(f"{good} instead of {bad}" if a else f"{bad} instead of {good}")
    return found + _own(mine, theirs, part, less)


def _own(mine: Known, theirs: Known, part: str, less: bool) -> list[str]:
    """What the engines' own time and dense weights have to do with it."""
    found = []
    times = {
        "rest": (mine.layer_ns, theirs.layer_ns, "a layer"),
        "experts": (mine.expert_ns, theirs.expert_ns, "an expert"),
    }
    a, b, of = times.get(part, (None, None, ""))
    if a is not None and b is not None and a != b and (a < b) == less:
        found.append(f"{_instead(a / 1e6, b / 1e6)} ms of the engine's own time {of}")
    bits = mine.dense_bits, theirs.dense_bits
    if part == "rest" and bits[0] != bits[1] and (bits[0] < bits[1]) == less:
        found.append(f"dense weights in {mine.dense} instead of {theirs.dense}")
    if part == "rest" and mine.dense_on_gpu != theirs.dense_on_gpu and mine.dense_on_gpu == less:
        where = ("the GPU alone", "the CPU, too")
        found.append("dense parts on {} instead of {}".format(*(where if less else where[::-1])))
    return found


def _resident(best: Phase, other: Phase, two: tuple[Known, Known] | None) -> list[str]:
    """How much of what is wanted is resident, where that differs, and what the memory says to it."""
    if isclose(best.hit_share, other.hit_share, rel_tol=AS_MUCH):
        return []
    text = f"resident is {_instead(100 * best.hit_share, 100 * other.hit_share, 1)} % of what is wanted"
    if two is None or two[0].slots == two[1].slots:
        return [text]
    mine, theirs = two
    why = [f"{mine.slots:,} slots instead of {theirs.slots:,}"]
    if mine.reserve_bytes != theirs.reserve_bytes:
        why.append(f"{_instead(mine.reserve_bytes / 1e9, theirs.reserve_bytes / 1e9)} GB kept free")
    return [f"{text} ({', '.join(why)})"]


def _rest(best: Phase, others: Mapping[str, Phase], name: str) -> str:
    """By which part the others are slower most."""
    by_part: dict[tuple[str, ...], list[str]] = {}
    for each, other in others.items():
        part = max(_all(best, other), key=lambda parts: _saved(best, other, parts))
        by_part.setdefault(part, []).append(each)
    told = [
        f"{words.removeprefix('of ')} ({', '.join(by_part[part])})" for part, words in SPENT.items() if part in by_part
    ]
    return f". What the others lose against {name} they lose most of all in {'; in '.join(told)}" if told else ""


# --- figures and lists ---


def _apart(*values: float, digits: int = 2) -> list[str]:
    """The values with as many digits as make those print differently that differ, from one another and from 0."""
    texts: list[str] = []
    for wide in range(digits, MOST_DIGITS + 1):
        every = [0.0, *values]
        texts = [f"{value:,.{wide}f}" for value in every]
        pairs = [(i, j) for i in range(len(every)) for j in range(i)]
        if all(texts[i] != texts[j] or isclose(every[i], every[j], rel_tol=1e-9) for i, j in pairs):
            break
    return texts[1:]


def _instead(mine: float, theirs: float, digits: int = 2) -> str:
    return " instead of ".join(_apart(mine, theirs, digits=digits))


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
