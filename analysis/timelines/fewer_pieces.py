"""A step of many pieces as one of fewer, as far as needed: first neighbours become one piece, then layers. The pieces
of the GPU still tile the step and add up by part, copies to the same bytes; what was done is said in words."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from analysis.timelines.one_step import NONE, PARTS, Step
from analysis.timelines.tracks import Slices

Int = npt.NDArray[np.int64]

IN_A_LAYER = ("draft", "dense", "decide", "demand", "late", "held", "experts", "cpu_wait", "head")
SUMS = ("n", "tokens", "bytes", "pieces", "unwanted")
FIRST = ("queued", "committed")
NEIGHBOURS = "Neighbours of one kind in one layer are drawn as one piece."
BY_LAYER = (
    "Each part of a layer is one piece, and they stand one after another, not where they were; copies of one kind that "
    "followed each other are one piece, too."
)
LEFT_OUT = "The shortest {n:,} of them are left out."


def fewer(step: Step, most: int) -> Step:
    """The step in at most `most` pieces, but never fewer than a few of each layer."""
    if step.pieces <= most:
        return step
    host = joined(step.host, "what", "layer")
    gpu, link = joined(step.gpu, "part", "layer"), joined(step.link, "cause", "layer")
    near = replace(step, gpu=gpu, link=link, host=host, merged=NEIGHBOURS)
    if near.pieces <= most:
        return near
    layers = replace(near, gpu=joined(_sorted_in_layers(step), "part", "layer"), merged=BY_LAYER)
    if layers.pieces <= most:
        return layers
    return _shortest_out(replace(layers, link=joined(step.link, "cause")), most)


def joined(part: Slices, *alike: str) -> Slices:
    """Those that follow each other and are alike in these columns as one, from the begin of the first to the end of the
    last; of what else differs the last one's (queued and committed: the first one's), of the expert -1."""
    if not len(part):
        return part
    new = np.logical_or.reduce([part.of[name][1:] != part.of[name][:-1] for name in alike])
    first = np.flatnonzero(np.append(True, new))
    last = np.append(first[1:], len(part)) - 1
    of = {name: c[first if name in FIRST else last] for name, c in part.of.items()}
    of |= {name: np.add.reduceat(part.of[name], first) for name in SUMS if name in part.of}
    of["expert"] = np.where(last > first, NONE, of["expert"])
    if "layer" not in alike:
        of["layer"] = np.where(part.of["layer"][first] == of["layer"], of["layer"], NONE)
    return Slices(part.begin[first], np.maximum.reduceat(part.end, first), of)


def _sorted_in_layers(step: Step) -> Slices:
    """The GPU's pieces of each layer by part, laid end to end."""
    gpu, rank = step.gpu, np.array([IN_A_LAYER.index(name) for name in PARTS])
    block = np.cumsum(np.append(0, gpu.of["layer"][1:] != gpu.of["layer"][:-1]))[: len(gpu)]
    order = np.lexsort((rank[gpu.of["part"]], block))
    ends = step.begin + np.cumsum((gpu.end - gpu.begin)[order])
    return Slices(np.append(step.begin, ends)[:-1], ends, {name: column[order] for name, column in gpu.of.items()})


def _shortest_out(step: Step, most: int) -> Step:
    """Without the shortest copies, where there are still too many pieces."""
    keep = max(1, most - step.pieces + len(step.link))
    if len(step.link) <= keep:
        return step
    kept = np.zeros(len(step.link), bool)
    kept[np.argsort(step.link.begin - step.link.end, kind="stable")[:keep]] = True
    words = f"{step.merged} {LEFT_OUT.format(n=int((~kept).sum()))}"
    return replace(step, link=step.link.where(kept), merged=words)
