"""What parameters mean, of families of policies that share them; one that a single policy has stands with that policy.

`sim.run --describe` shows them. A predictor's, and a user's own, stand in its docstring (`told`): lines of
`name   what it means` with two spaces or more between, continued by lines that are indented further.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

COUNTED: Mapping[str, str] = {
    "ties": "of equals: the older touch goes first, or (id) the smaller id stays, a visit being one instant",
    "atomic": "yes: a visit's experts are one access; no: one after another, as in a loop over experts",
    "touches": "run: running an expert is its touch; listed: within a visit recency is the router's order",
}
COMMON: Mapping[str, str] = {
    "prefill": "whether lossy answers are given in prefill steps, too",
    "late": "whether an expert that is on its way already counts as missing",
}
SUBSTITUTION: Mapping[str, str] = {
    **COMMON,
    "selector": "who stands in: the first resident of the buddy list, a random one, the next by the router's rank, "
    "nobody and the slot is dropped, or nobody and `fallback` answers",
    "matched": "yes: only where the buddy list has a resident (a control of the same reach)",
    "temperature": "of the softmax that TAE is taken of: weight ** (1 / temperature), renormalised",
    "gamma": "margin gate: shut where the two largest router weights differ by this or more; above 1: no gate",
    "beta": "distribution gate: shut where so large a share of the visit's experts is not on the GPU; above 1: no gate",
    "budget": "and where more than so many of them are missing; 0: no limit",
    "rho": "stand-ins that a token may get in a layer",
    "search": "entries of the buddy list that are looked at",
    "lowest_first": "whether the slots of least router weight are asked about first",
    "fallback": "where nobody stands in: fetch, drop, cpu, or the cheaper of cpu and fetch",
    "eta": "how far the router's probability of the buddy counts beside the list's (needs logits; 0: not)",
    "kappa": "what each partition between an expert and its buddy takes off the buddy's score (0: nothing)",
    "partitions": "equal parts of a layer's experts, for `kappa`",
    "background": "whether an expert that somebody stood in for is fetched behind everything else",
    "touch": "whether standing in counts as a use of the stand-in, for the eviction",
    "backlog": "whether the cheaper answer counts what this visit has given each side already",
}
GATES: Mapping[str, str] = {
    "tau": "TAE gate: stand-ins only for tokens whose router entropy (0 one expert, 1 all alike) is above this; "
    "from 1 on nobody stands in",
    "percentile": "the TAE gate of each layer at this percentile of the calibration trace, in place of `tau`",
    "budget_mb": "`budget` as MB (1e6 bytes) of experts; 0: as `budget` says",
}
LISTS: Mapping[str, str] = {
    "lists": "a file of python -m sim.profile, in place of lists fitted on --calibration",
    "alpha": "a list ends where it covers this share of the co-activation (the paper's CFT)",
    "k_max": "longest list",
    "count": "a pair in one token counts 1, its lower router weight, or a mixture",
    "mix": "share of the weighted counts in `mixed`",
    "eps": "added to every count",
    "warmup": "first tokens of each request that count half",
}
MATRIX: Mapping[str, str] = {
    "matrix": "an .npz with `similarity` [MoE layers, experts, experts], from -1 to 1; required"
}
ADMIT: Mapping[str, str] = {
    "inserts": "admissions that may join in a visit",
    "queue": "admissions that may wait",
    "admit_after": "misses after which an expert may take a free slot",
    "replace_after": "misses after which it may take a resident's place",
    "max_rows": "steps of more rows admit nobody",
    "warm": "whether visits of the bulk rule count and admit, too",
    "spare": "a resident that ran within so many visits of its layer stays",
    "margin": "a resident goes only if it is worth so many times less than the newcomer (to an eviction that weighs); "
    "0: any",
}
SPLIT: Mapping[str, str] = {
    "by": "share: the number whose slower side ends first; makespan: one by one to whoever ends first; table: stated",
    "least": "misses that go over the link in any case",
    "keep": "yes: what crosses the link is fetched into a slot; no: it is streamed",
    "table": "by table: how many of 0, 1, 2, ... misses go over the link; of more the last",
}
FILE: Mapping[str, str] = {"file": "a frequency profile (.npz, docs/formats.md), in place of the calibration trace"}
_LINE = re.compile(r"(\w+)  +(\S.*)")


def told(doc: str | None, names: Any) -> dict[str, str]:
    """What a docstring says of each of these parameters, as far as it does."""
    out: dict[str, str] = {}
    at = ""
    for line in inspect.cleandoc(doc or "").splitlines():
        found = _LINE.fullmatch(line)
        at = found[1] if found and found[1] in names else at if at and line.startswith("    ") else ""
        if at:
            out[at] = f"{out[at]} {line.strip()}" if at in out else found[2] if found else ""
    return out


def paragraphs(doc: str | None, names: Any) -> str:
    """A docstring without its first line and what it says of these parameters: paragraphs, a blank line between."""
    known = told(doc, names)
    blocks = inspect.cleandoc(doc or "").partition("\n")[2].strip().split("\n\n")
    kept = [block for block in blocks if not any(block.startswith(f"{name}  ") for name in known)]
    return "\n\n".join(" ".join(block.split()) for block in kept)
