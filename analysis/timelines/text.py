"""A few steps of a timeline as text: a row for the GPU, the link and the host, a column for each ns or for several.

`0.2` is expert 2 of MoE layer 0. On the link `stream 0.2` is a copy into a stage, `stream 0.2..4` three experts as one
transfer, with `x` if nobody ran any of them; `admit`, `remote`: as they say. On the host `+` is a deferred expert.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from analysis.timelines.tracks import ADMISSION, REMOTE, Slices, Tracks
from sim.core.plan import PLACES
from sim.outcome.summary import STALLS

Cell = tuple[int, int, str, str]  # begin and end ns, what is written into it, what fills it
WIDTH = 120  # columns at most
TICK = 10  # columns
DEFERRED, STAGE = PLACES.index("deferred"), PLACES.index("stage")


def picture(shown: Tracks, begin: int, end: int) -> str:
    """The text, from `begin` to `end` ns; shown: the intervals of the steps that lie there, or reach into them."""
    scale = max(1, -(-(end - begin) // WIDTH))
    rows = {"GPU": _gpu(shown), "link": _link(shown), "slowed": _slowed(shown), "host": _host(shown)}
    rows = {name: cells for name, cells in rows.items() if cells or name in ("GPU", "link")}
    unit = "ns" if scale == 1 else f"{scale} ns"
    lines = [f"{unit:<7}" + _ruler(begin, end, scale)]
    lines += [f"{name:<7}" + _row(cells, begin, end, scale) for name, cells in rows.items()]
    return "\n".join(line.rstrip() for line in [*lines, *_rejected(shown)])


def _ruler(begin: int, end: int, scale: int) -> str:
    columns = (end - begin) // scale
    tick = max(TICK, TICK * -(-(len(str(end)) + 1) // TICK))  # as wide as what stands at it
    return "".join(str(begin + scale * at).ljust(tick) for at in range(0, columns + 1, tick))


def _row(cells: Iterable[Cell], begin: int, end: int, scale: int) -> str:
    """Each cell from its own column to that of the next; what lasts less than a column is left out."""
    out = [" "] * ((end - begin) // scale + 1)
    for since, until, text, fill in sorted(cells):
        first, last = max(0, (since - begin) // scale), min(len(out) - 1, (until - begin) // scale)
        if last > first:
            whole = f"|{text}".ljust(last - first, fill)[: last - first]
            out[first : last + 1] = [*whole, "|"]
    return "".join(out)


def _words(part: Slices, words: Sequence[str], fill: str) -> list[Cell]:
    return list(zip(part.begin.tolist(), part.end.tolist(), words, [fill] * len(part), strict=True))


def _names(part: Slices) -> list[str]:
    pairs = zip(part.of["layer"].tolist(), part.of["expert"].tolist(), strict=True)
    return [f"{layer}.{expert}" for layer, expert in pairs]


def _marked(names: Sequence[str], mark: str, where: npt.NDArray[np.bool_]) -> list[str]:
    return [name + mark * marked for name, marked in zip(names, where.tolist(), strict=True)]


def _gpu(shown: Tracks) -> list[Cell]:
    plain = {
        "draft": shown.draft,
        "dense": shown.dense,
        "decide": shown.decide,
        "set-up": shown.overhead,
        "head": shown.head,
    }
    out = [cell for word, part in plain.items() for cell in _words(part, [word] * len(part), "-")]
    out += _words(shown.cpu_wait, ["cpu"] * len(shown.cpu_wait), "~")
    out += _words(shown.stall, [STALLS[cause] for cause in shown.stall.of["cause"].tolist()], ".")
    names = _marked(_names(shown.experts), " remote", shown.experts.of["place"] == REMOTE)
    return out + _words(shown.experts, names, "=")


def _link(shown: Tracks) -> list[Cell]:
    c = shown.copies
    fronts = {REMOTE: "remote ", STAGE: "stream "}
    out = []
    for i, name in enumerate(_names(c)):
        n, place = int(c.of["n"][i]), int(c.of["place"][i])
        front = "admit " if c.of["cause"][i] == ADMISSION else fronts.get(place, "")
        several = f"..{int(c.of['expert'][i]) + n - 1}" * (n > 1)
        out.append(front + name + several + "x" * (place == STAGE and bool(c.of["unwanted"][i] == n)))
    return _words(c, out, "=")


def _slowed(shown: Tracks) -> list[Cell]:
    return _words(shown.slowed, [""] * len(shown.slowed), ":")


def _host(shown: Tracks) -> list[Cell]:
    names = _marked(_names(shown.host), "+", shown.host.of["place"] == DEFERRED)
    return _words(shown.host_visits, ["visit"] * len(shown.host_visits), "-") + _words(shown.host, names, "=")


def _rejected(shown: Tracks) -> list[str]:
    names = _names(shown.rejected)
    return [f"{at} ns: {name} is not admitted" for at, name in zip(shown.rejected.begin.tolist(), names, strict=True)]
