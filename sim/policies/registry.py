"""The policies by name: what a spec may ask for, with parameters, needs and sources.

An eviction, a miss or a re-ranking policy is its function in sim/core and its line here; a prefetcher is a class of
sim.fit.predictors, which lists it. CONTRIBUTING.md has the recipes, with what tests want of it.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sim.core import miss, rerank, substitution, worth
from sim.core.plan import ADMIT_PARAMS, SPLIT_PARAMS, SPLITS, SUBSTITUTE_PARAMS
from sim.errors import SpecError, unknown
from sim.fit.prediction import Predictor
from sim.fit.predictors import PREDICTORS
from sim.policies import meanings
from sim.policies.kinds import BULK, KINDS, Value, plain
from sim.policies.policy import MANY, NONE, From, Policy, called, is_user, no_parameter


def _table(*policies: Policy) -> dict[str, Policy]:
    return {policy.name: policy for policy in policies}


# how an eviction is told to count, beside its own parameters: what `adds` makes of them
_BY_ID: dict[str, Value] = {"ties": "older"}
_IN_TURN: dict[str, Value] = {"atomic": "yes"}
_COUNTED = {**_BY_ID, **_IN_TURN}
_SHARE, _PLACES = From(0, whole=False, most=1), From(1)
_PART, _FROM_0, _WHOLE_FROM_0 = From(0, whole=False, most=1, above=True), From(0, whole=False), From(0)
_SINCE = {"since": "uses are counted since it landed, or over the whole run"}


def _counting(*by_visit: str) -> Callable[[Mapping[str, float]], Iterable[str]]:
    """The marks that an eviction's parameters add; by_visit: more of them with ties=id."""

    def adds(values: Mapping[str, float]) -> Iterable[str]:
        asked = {
            "by-id": values.get("ties") == 1, "one-by-one": values.get("atomic") == 0,
            "listed": values.get("touches") == 1,
            **dict.fromkeys(("told", "uses"), values.get("since") == 0), "bypass": values.get("kappa", -1) >= 0,
        }  # fmt: skip
        return [*(mark for mark, is_so in asked.items() if is_so), *(by_visit if asked["by-id"] else ())]

    return adds


def _eviction(name: str, kind: int, doc: str, source: str, params: Any = None, **more: Any) -> Policy:
    """An eviction; `counted`: the ways of counting that it has (default: all)."""
    counted, by_visit = more.pop("counted", _COUNTED), more.pop("by_visit", ())
    means = {key: meanings.COUNTED[key] for key in counted} | more.pop("means", {})
    return Policy(name, kind, doc, source, params or {}, counted, means=means, adds=_counting(*by_visit), **more)


EVICTION = _table(
    _eviction(
        "lru", worth.LRU, "the least recent touch or landing goes", "Mattson et al. 1970", search={},
        counted={**_COUNTED, "touches": "run"}, by_visit=("scores", "uses", "told"),
    ),
    _eviction(
        "lfu", worth.LFU, "the fewest executions over the whole run (or `since` it landed) go", "Mattson et al. 1970",
        {"since": 1}, keeps=("landings",), weighs=True, search={}, means=_SINCE,
    ),
    _eviction(
        "lfru", worth.LFRU, "the least uses / (age + 1) goes: uses `since` it landed, age in visits of its scope",
        "least frequently and recently used, as public comparisons of expert caches have it", {"since": 0},
        keeps=("scores", "uses", "told", "slots"), search={}, means=_SINCE,
    ),
    _eviction(
        "fifo", worth.FIFO, "the earliest landing goes", "Belady 1966", keeps=("landings",), search={},
        by_visit=("scores", "told"),
    ),
    _eviction(
        "random", worth.RANDOM, "any evictable resident, by a hash of seed, visit and draw", "Belady 1966",
        keeps=("landings",), counted=_IN_TURN,
    ),
    _eviction(
        "decayed", worth.DECAYED,
        "the lowest score goes: uses, each multiplied by `decay` per visit of the layer since; with `kappa` a newcomer "
        "whose score does not exceed the lowest by more is not kept",
        "LRFU, Lee et al. 2001; decayed counts as in several offloading engines", {"decay": 0.9, "kappa": -1},
        keeps=("scores", "uses", "told", "slots"), weighs=True, search={"decay": (0.9, 0.5, 0.7, 0.8, 0.95, 0.98)},
        ranges={"decay": _SHARE, "kappa": _FROM_0},
        means={
            "decay": "what a use still counts after one more visit of its layer",
            "kappa": "a newcomer is kept only if its score exceeds the lowest by more; none: each is kept",
        },
    ),
    _eviction(
        "lru-k", worth.LRU_K, "the oldest `k`-th last use goes, and before it whoever was used less often",
        "O'Neil et al. 1993", {"k": 2, "since": 1}, keeps=("scores", "uses", "told", "history"),
        ranges={"k": From(1, most=8)}, means={"k": "which of the last uses decides (2: the one before it)", **_SINCE},
    ),
    _eviction(
        "sieve", worth.SIEVE, "a hand walks over landings, clears the bits of what was used again, and takes the first "
        "without one", "SIEVE, Zhang et al. 2024", keeps=("lists", "uses", "told"), counted=_IN_TURN, search={},
    ),
    _eviction(
        "clock", worth.CLOCK, "the oldest goes; one that was used again moves to the new end instead, once",
        "second chance, Corbato 1968", keeps=("lists", "uses", "told"), counted=_IN_TURN,
    ),
    _eviction(
        "s3-fifo", worth.S3_FIFO, "newcomers stand in a `small` queue, go on to main if used twice there, else out and "
        "are remembered; main is a clock that counts to 3", "Yang et al. 2023", {"small": 0.1},
        keeps=("lists", "uses", "told"), counted=_IN_TURN, search={}, ranges={"small": _SHARE},
        means={"small": "share of the slots that the small queue has"},
    ),
    _eviction(
        "arc", worth.ARC, "recent ones and frequent ones, with ghosts of both; their hits move the target between them",
        "Megiddo and Modha 2003", keeps=("lists", "uses", "told"), counted=_IN_TURN,
    ),
    _eviction(
        "w-tinylfu", worth.W_TINYLFU, "a `window`, a segmented LRU behind it (`protected` of it for what was used "
        "again), and the more frequent of their oldest two stays", "Einziger et al. 2017",
        {"window": 0.01, "protected": 0.8}, keeps=("lists", "uses", "told"), counted={},
        ranges={"window": _SHARE, "protected": _SHARE},
        means={"window": "share of the slots that are the window", "protected": "share of the rest that is protected"},
    ),
    _eviction(
        "layer-distance", worth.LAYER_DISTANCE,
        "the expert whose layer comes again last goes (one pool; within a layer it is lru)",
        "by layer distance, as several layer-wise engines do", keeps=("scores", "uses", "told"), counted=_BY_ID,
        search={},
    ),
    _eviction(
        "least-stale", worth.LEAST_STALE, "who was not touched in this forward pass goes first, then the older use",
        "after SpecMD, arXiv 2603.07506, whose own text was not found", keeps=("scores", "uses", "told", "fresh"),
        counted={},
    ),
    _eviction(
        "reuse-interval", worth.REUSE_INTERVAL,
        "the furthest predicted next use goes, by a moving mean (`alpha` for the last) of the intervals between uses",
        "predicted reuse intervals, as in several expert caches", {"alpha": 0.5}, keeps=("scores", "uses"), counted={},
        ranges={"alpha": _SHARE}, means={"alpha": "weight of the newest interval in the moving mean"},
    ),
    _eviction(
        "activation-matrix", worth.ACTIVATION,
        "the least (share of its layer's tokens in the requests being served) x (1 - layer / layers) goes",
        "MoE-Infinity, arXiv 2401.14361", keeps=("scores", "requests"), weighs=True, counted=_BY_ID, search={},
    ),
    _eviction(
        "window-score", worth.WINDOW_SCORE, "the least router weight in the last `window` visits of its layer goes",
        "score-averaged window, as in engines that keep router scores", {"window": 16}, needs=("weights",),
        keeps=("scores", "window", "weights"), weighs=True, counted=_BY_ID, search={"window": (16, 4, 8, 32, 64)},
        ranges={"window": _PLACES}, means={"window": "visits of its layer that count"},
    ),
    _eviction(
        "mrs", worth.MRS, "the least moving mean (`alpha` for this visit) goes, of the router's probability where it "
        "is among the 2 x top-k highest", "HybriMoE, arXiv 2504.05897", {"alpha": 0.3}, needs=("logits",),
        keeps=("scores", "logits"), weighs=True, counted=_BY_ID, search={"alpha": (0.3, 0.1, 0.5)},
        ranges={"alpha": _SHARE}, means={"alpha": "weight of this visit in the moving mean"},
    ),
    _eviction(
        "hobbit-priority", worth.HOBBIT, "the least (uses + `low` x those of its small copy) / steps + used lately / "
        "layers until it comes again goes, counted anew per request", "HOBBIT, arXiv 2411.01433", {"low": 0.25},
        keeps=("scores", "uses", "fresh"), counted=_BY_ID, ranges={"low": _SHARE},
        means={"low": "what a use of its low-precision copy counts"},
    ),
    _eviction(
        "belady", worth.BELADY, "the expert wanted furthest ahead goes (reads the future)", "Belady 1966",
        oracle=True, keeps=("next-use",),
    ),
    _eviction(
        "min", worth.MIN, "the expert wanted furthest ahead goes, and a newcomer wanted later than all is not kept "
        "(reads the future; a visit's hits keep their places in it)", "Belady 1966, with bypass",
        oracle=True, keeps=("scores", "next-use", "bypass"),
        counted={},
    ),
    _eviction(
        "belady-w", worth.BELADY_W, "as min where the next use lies within `w` steps, else by decayed uses: what so "
        "much foresight is worth", "Belady 1966, over a window", {"w": 4, "half_life": 16}, oracle=True,
        keeps=("scores", "uses", "next-use", "bypass"), counted={},
        ranges={"w": _WHOLE_FROM_0, "half_life": From(1e-3, whole=False)},
        means={"w": "steps that it sees ahead", "half_life": "visits in which a use comes to count half"},
    ),
    _eviction(
        "static", worth.STATIC,
        "nobody: the first residents stay, a newcomer takes no slot, free or not, and is streamed",
        "fixed expert placements: KTransformers, llama.cpp -ot", keeps=("fixed",), counted={}, search={},
    ),
    _eviction(
        "window-swap", worth.WINDOW_SWAP, "as static, but every `window` visits of a layer its `swap` most wanted "
        "outsiders of late come for the least wanted", "DALI, arXiv 2602.03495", {"window": 8, "swap": 2},
        keeps=("scores", "window", "fixed"), counted={}, ranges={"window": _PLACES, "swap": _PLACES},
        means={"window": "visits of a layer from one swap to the next", "swap": "experts that are swapped at most"},
    ),
)  # fmt: skip

# --- miss policies ---
BUDDYMOE = "BuddyMoE, arXiv 2511.10054"
_COMMON = {"prefill": 0, "late": 0}  # lossy answers in prefill steps too; late experts count as missing
_OPEN = dict(
    zip(SUBSTITUTE_PARAMS, (0, 0, 1, 2, 2, 0, MANY, MANY, 0, 0, 0, 0, 1, 0, 1, 0), strict=True)
)  # every gate open, no limit, list order, fetch what nobody stands in for
_GATED = {"beta": 1.0, "rho": 3.0}
_GATE_SETTINGS: dict[str, Value] = {"tau": 0.95, "percentile": -1.0, "budget_mb": 0.0}
_GATE_RANGES = {
    "tau": _FROM_0, "percentile": From(0, whole=False, most=100), "budget_mb": _FROM_0, "alpha": _PART,
    "k_max": From(1), "mix": _SHARE, "eps": _FROM_0, "warmup": _WHOLE_FROM_0,
}  # fmt: skip
_OPEN_RANGES = {
    "temperature": From(0, whole=False, above=True), "gamma": _FROM_0, "beta": _FROM_0, "budget": _FROM_0,
    "rho": _WHOLE_FROM_0, "search": _WHOLE_FROM_0, "partitions": From(1),
}  # fmt: skip
_GATES = {"tau": (0.95, 0.9, 0.8, 0.7, 0.5, 0.3), "beta": (1.0, 0.5, 0.8), "rho": (3, 1, 2)}  # worth trying
_LISTS: dict[str, Value] = {
    "lists": "", "alpha": 0.9, "k_max": 16, "count": "binary", "mix": 0.5, "eps": 1e-6, "warmup": 0,
}  # fmt: skip


def _substitution(
    name: str, doc: str, source: str, selector: int, prepared: Mapping[str, Value], lists: str = "", **params: Any
) -> Policy:
    needs: tuple[str, ...] = params.pop("needs", ("weights",))
    lossy, search, means = params.pop("lossy", True), params.pop("search", None), params.pop("means", {})
    mean = params.pop("mean", False)
    return Policy(
        name,
        miss.SUBSTITUTE,
        doc,
        source,
        params={**_OPEN, **params, "selector": selector},
        prepared={**_COMMON, **prepared},
        needs=needs,
        means={**meanings.SUBSTITUTION, **means},
        ranges=_OPEN_RANGES | {key: allowed for key, allowed in _GATE_RANGES.items() if key in prepared},
        lossy=lossy,
        mean=mean,
        search=search,
        fitted=lists == "buddies",
        lists=lists,
    )


def _buddy(
    name: str, doc: str, selector: int = substitution.SELECT_LIST, source: str = BUDDYMOE, **more: Any
) -> Policy:
    """A policy under the buddy's gates and budget; `more` may hold core parameters and prepared ones."""
    settings = {**_GATE_SETTINGS, **_LISTS}
    prepared = {**settings, **{key: more.pop(key) for key in list(more) if key in settings}}
    means = {**meanings.GATES, **meanings.LISTS}
    return _substitution(name, doc, source, selector, prepared, "buddies", means=means, **{**_GATED, **more})


_ADMIT = dict(zip(ADMIT_PARAMS, (2, 8, 2, 8, 8, 0, 0, 0), strict=True))
_ADMIT_RANGES = {key: From(1) for key in ("inserts", "queue", "admit_after", "replace_after", "max_rows")}
_ADMIT_RANGES |= {"spare": From(0), "margin": From(0, whole=False)}
_SPLIT = dict(zip(SPLIT_PARAMS, (SPLITS.index("share"), 0, 1), strict=True))

NULLS = "matched null: the buddy's gates and budget, another selector (the control that the paper lacks)"
MISS = _table(
    Policy("fetch", miss.FETCH, "wait until it has crossed the link", "every lossless engine", search={}),
    Policy(
        "drop",
        miss.DROP,
        "leave the missing expert out",
        "the zero-fill baseline",
        prepared=_COMMON,
        means=meanings.COMMON,
        lossy=True,
    ),
    Policy(
        "drop-by-weight",
        miss.DROP_BY_WEIGHT,
        "leave a missing expert out where its router weight is below `threshold`, else fetch",
        "zero-fill by weight, as several engines do",
        {"threshold": 0.08},
        _COMMON,
        means={"threshold": "router weight below which it is left out", **meanings.COMMON},
        ranges={"threshold": _FROM_0},
        needs=("weights",),
        lossy=True,
        search={"threshold": (0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3)},
    ),
    Policy(
        "mean-output",
        miss.DROP_BY_WEIGHT,
        "a missing expert's mean output stands in where its router weight is below `threshold`, else fetch",
        "this project; measured: analysis/results/closed_loop.md",
        {"threshold": 0.15},
        _COMMON,
        means={"threshold": "router weight below which the mean output stands in", **meanings.COMMON},
        ranges={"threshold": _FROM_0},
        needs=("weights",),
        lossy=True,
        mean=True,
    ),
    Policy(
        "hobbit",
        miss.PRECISION,
        "by the router weight in front of it: fetch up to `full`, a low-precision copy up to `low`, else nobody",
        "HOBBIT, arXiv 2411.01433",
        {"full": 0.6, "low": 0.9},
        {**_COMMON, "precision": "q4", "slots": "0.25"},
        means={
            "full": "share of the token's router weight in front of it up to which the expert itself is fetched",
            "low": "and up to which its low-precision copy is; beyond, nobody runs",
            "precision": "of the copies (sim.catalog/precisions.toml)",
            "slots": "slots of copies: a share of the experts (0.25), slots (8) or bytes (2GB)",
            **meanings.COMMON,
        },
        needs=("weights",),
        lossy=True,
    ),
    Policy(
        "cpu",
        miss.CPU,
        "compute the missing expert on the host, beside the GPU",
        "Fiddler, arXiv 2402.07033",
        prepared={"late": 0},
        means={"late": meanings.COMMON["late"]},
        answers_cpu=True,
        search={},
    ),
    Policy(
        "stream",
        miss.STREAM,
        "copy the missing expert into a staging buffer and run it from there; residents stay",
        "llama.cpp's copies of host weights for large batches (op offload)",
        search={},
    ),
    Policy(
        "remote",
        miss.REMOTE,
        "the GPU reads the missing expert's weights over the link while it computes (zero-copy)",
        "vLLM's UVA offloading",
    ),
    Policy(
        "cpu-admit",
        miss.ADMIT,
        "compute on the host; behind it at most `inserts` a visit cross the link: after `admit_after` misses into a "
        "free slot, after `replace_after` in a resident's place",
        "public llama.cpp forks and pull requests with an expert cache",
        _ADMIT,
        means=meanings.ADMIT,
        answers_cpu=True,
        ranges=_ADMIT_RANGES,
        search={"inserts": (2, 1, 8)},
    ),
    Policy(
        "split",
        miss.SPLIT,
        "some of a visit's misses over the link, the others on the host: by their cost (share), one by one "
        "(makespan), or by a table of how many",
        "FreeToken (share); HybriMoE, arXiv 2504.05897 (makespan); cache engines that publish a table",
        _SPLIT,
        {"table": "0,0,1,1,2"},
        means=meanings.SPLIT,
        answers_cpu=True,
        ranges={"least": From(0)},
        search={"by": ("share", "makespan")},
    ),
    _substitution(
        "fiddler",
        "per missing expert the cheaper of the CPU and transfer plus GPU; with `backlog` what waits counts too",
        "Fiddler, arXiv 2402.07033",
        substitution.SELECT_NOBODY,
        {},
        needs=(),
        lossy=False,
        fallback=substitution.FALL_CHEAPER,
        search={"backlog": (0, 1)},
    ),
    _buddy(
        "buddy",
        "a resident buddy stands in; tau = .95 is the TAE gate (reading A of the paper's tables)",
        search=_GATES,
    ),
    _buddy(
        "buddy-b",
        "the same, reading B: tau = .95 is the coverage alpha; TAE gate by percentile",
        alpha=0.95,
        percentile=15.0,
    ),
    _buddy("buddy-first-fit", "Algorithm 1 alone: no gate, no limit", tau=-1.0, beta=2.0, rho=MANY),
    _buddy(
        "matched-random",
        "any resident, only where a buddy would stand in",
        substitution.SELECT_RANDOM,
        NULLS,
        matched=1.0,
    ),
    _buddy(
        "matched-next-ranked",
        "the resident the live router ranks best, only where a buddy would stand in",
        substitution.SELECT_NEXT,
        NULLS,
        matched=1.0,
        needs=("weights", "logits"),
    ),
    _buddy("matched-drop", "nobody, only where a buddy would stand in", substitution.SELECT_DROP, NULLS, matched=1.0),
    _buddy(
        "matched-mean",
        "the missing expert's mean output, only where a buddy would stand in",
        substitution.SELECT_DROP,
        NULLS,
        matched=1.0,
        mean=True,
    ),
    _buddy(
        "mixed",
        "a buddy, else the cheaper of CPU and fetch, counting what this visit has given each",
        fallback=substitution.FALL_CHEAPER,
        backlog=1.0,
        search=_GATES,
    ),
    _substitution(
        "similarity",
        "the resident of most similar output stands in (lists from `matrix`, an .npz), under the buddy's gates",
        "functional similarity, Fig. 4 of arXiv 2511.10054",
        substitution.SELECT_LIST,
        {**_GATE_SETTINGS, "matrix": "", "k_max": 16, "alpha": 1.0},
        "similarity",
        means={
            **meanings.GATES,
            **meanings.MATRIX,
            "k_max": meanings.LISTS["k_max"],
            "alpha": "a list ends where it covers this share of the positive similarity",
        },
        **_GATED,
    ),
    Policy(
        "speculate",
        miss.SPECULATE,
        "if all that was predicted `distance` layers before is there, it runs in place of what is missing; else fetch",
        "Speculating Experts, arXiv 2603.19289",
        prepared={**_COMMON, "distance": 1},
        means={"distance": "MoE layers ahead that the trace's lookahead was asked", **meanings.COMMON},
        needs=("lookahead",),
        lossy=True,
        ranges={"distance": From(1)},
        search={},
    ),
    _substitution(
        "random",
        "any resident stands in, no gate",
        "the paper's baseline; whether gated is not known",
        substitution.SELECT_RANDOM,
        {},
        needs=(),
    ),
    _substitution(
        "next-ranked",
        "the resident the live router ranks best stands in, no gate",
        "neighbours of arXiv 2511.10054",
        substitution.SELECT_NEXT,
        {},
        needs=("logits",),
    ),
)

_ALWAYS = "ranks that stay, resident or not"
RERANK = _table(
    Policy(
        "cache-prior", rerank.CACHE_PRIOR, "logits of residents rise by strength x mean logit range",
        "arXiv 2412.00099", {"strength": 0.3}, needs=("logits",), lossy=True,
        means={"strength": "what being resident adds to a logit, in mean ranges of the layer's logits"},
    ),
    Policy(
        "max-rank", rerank.MAX_RANK, "the first `always`, then residents among the first `among`", "arXiv 2412.00099",
        {"always": 1, "among": 12}, needs=("logits",), lossy=True,
        ranges={"always": _WHOLE_FROM_0, "among": _WHOLE_FROM_0},
        means={"always": _ALWAYS, "among": "ranks within which a resident comes before whoever is not"},
    ),
    Policy(
        "cache-prior-mass", rerank.CACHE_PRIOR_MASS,
        "the first `always`, then residents among the first whose probabilities add up to `mass`", "arXiv 2412.00099",
        {"always": 1, "mass": 0.9}, needs=("logits",), lossy=True,
        ranges={"always": _WHOLE_FROM_0, "mass": _SHARE},
        means={"always": _ALWAYS, "mass": "probability of the ranks within which a resident comes first"},
    ),
    Policy(
        "tolerance", rerank.TOLERANCE,
        "slot by slot a resident whose probability is at most the share `tolerance` below the best one left",
        "arXiv 2608.18261", {"tolerance": 0.35}, needs=("logits",), lossy=True,
        ranges={"tolerance": _SHARE},
        means={"tolerance": "how far below the best one's probability a resident's may lie, as a share of it"},
    ),
    Policy(
        "smoe", rerank.SMOE, "a missing low-score expert gives way to a resident just below the cut",
        "SMoE, arXiv 2508.18983", {"margin": 0.25}, needs=("weights", "logits"), lossy=True,
        ranges={"margin": _FROM_0}, means={"margin": "how near the cut, as a share of its probability, both must lie"},
    ),
    Policy(
        "adapmoe", rerank.ADAPMOE, "no second expert where weight^2 < threshold", "AdapMoE, arXiv 2408.10284",
        {"threshold": 0.005}, needs=("weights",), lossy=True,
        ranges={"threshold": _FROM_0}, means={"threshold": "squared router weight below which it is left out"},
    ),
    Policy(
        "sere", rerank.SERE, "in a batch, secondary experts go to the most similar primary one",
        "SERE, arXiv 2602.07616", {"threshold": 0.5, "primary": 1}, {"matrix": ""}, needs=("weights",), lossy=True,
        ranges={"threshold": From(-1, whole=False, most=1), "primary": _WHOLE_FROM_0},
        means={
            "threshold": "least similarity of the two", "primary": "strongest experts of a token that stay",
            **meanings.MATRIX,
        },
    ),
)  # fmt: skip

PLACEMENT = _table(
    Policy("first", 0, "expert 0, 1, ... of each layer", "the order in which engines load a checkpoint"),
    Policy("empty", 0, "nothing is resident", "a cold start"),
    Policy(
        "popular",
        0,
        "the most popular of the calibration trace, the most popular the most recent",
        "expert popularity from calibration data: Fiddler, arXiv 2402.07033",
        fitted=True,
    ),
    Policy(
        "global-popular",
        0,
        "the most popular (layer, expert) pairs of the calibration trace, or of a frequency profile "
        "(--set global-popular.file=P.npz), as many as there are slots: they set each layer's slots",
        "KTransformers: a flat mask of the most activated experts over all layers",
        prepared={"file": ""},
        means=meanings.FILE,
        fitted=True,
        spreads=True,
    ),
    Policy(
        "profile",
        0,
        "the most popular of a frequency profile (--set profile.file=P.npz), the most popular the most recent",
        "the counts that engines write: docs/formats.md",
        prepared={"file": ""},
        means={"file": "the frequency profile (.npz, docs/formats.md); required"},
    ),
    Policy("random", 0, "by a hash of seed, layer and expert", "this project"),
    Policy(
        "buddy-coverage",
        0,
        "leaves the least wanted router weight of the calibration without a resident buddy (greedy)",
        BUDDYMOE,
        fitted=True,
        lists="buddies",
    ),
)


# --- by name ---
def _prefetcher(predictor: type[Predictor]) -> Policy:
    """What a predictor's class says of it, as a policy; its parameters are its arguments."""
    arguments = inspect.signature(predictor).parameters.values()
    names, means = {each.name for each in arguments}, dict[str, str]()
    for each in reversed(predictor.__mro__):  # the nearest class has the last word
        means |= meanings.told(each.__doc__, names)
    return Policy(
        predictor.name,
        0,
        str(predictor.__doc__).splitlines()[0],
        predictor.source,
        prepared={each.name: each.default for each in arguments},
        needs=predictor.needs,
        means=means,
        more=meanings.paragraphs(predictor.__doc__, names),
        ranges={name: allowed for name, allowed in predictor.ranges.items() if name in names},
        fitted=predictor.fitted,
        oracle=predictor.oracle,
        search=predictor.search,
        make=predictor,
        drafts=predictor.drafts,
    )


PREFETCH = _table(*map(_prefetcher, PREDICTORS.values()))
TABLES = dict(zip(KINDS, (EVICTION, PREFETCH, MISS, RERANK, PLACEMENT), strict=True))


def find(kind: str, name: str) -> Policy:
    """The policy of that name (NONE for a kind's `none`; a bulk rule is a miss policy), or the user's own
    (FILE.py:FUNCTION); SpecError with the nearest name if none is."""
    if name == NONE.name and kind in ("prefetch", "rerank"):
        return NONE
    kind = "miss" if kind == BULK else kind
    if kind != "placement" and is_user(name):
        from sim.policies.user import load  # late: few runs have one

        return load(name, kind)
    name = canonical(kind, name)
    return TABLES[kind][name] if name in TABLES[kind] else _elsewhere(kind, name)


def _elsewhere(kind: str, name: str) -> Policy:
    """A function or class in memory, or a plug-in's. Raises SpecError with the nearest name where nobody has it."""
    from sim.policies.in_memory import held  # late, both: few runs have one
    from sim.policies.plugged import names, plugged

    found = held(kind, name) or plugged(kind, name)
    if found is None:
        others = [other for other in KINDS if other != kind and name in {*TABLES[other], *names(other)}]
        if others:
            raise SpecError(f"{kind}: {name!r} is no {kind}; {name} is a --{others[0]}")
        theirs = [each for each in names(kind) if plain(each) not in TABLES[kind]]
        raise unknown(kind, name, {*TABLES[kind], *theirs})
    return found


def canonical(kind: str, name: str) -> str:
    """The registry's spelling of a policy's name, whatever its case and underscores, or a plug-in's; of one in memory,
    and any other, as it is."""
    meant = plain(name)
    if meant in TABLES[kind] or (kind in ("prefetch", "rerank") and meant == NONE.name):
        return meant
    from sim.policies.in_memory import is_held  # late, both: few runs have one
    from sim.policies.plugged import spelled

    return name if is_user(name) or is_held(kind, name) else spelled(kind, name) or name


def assigned(chosen: Mapping[str, str], given: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Which policy of a run each parameter goes to: by kind, name -> value.

    chosen: the policy of each kind. given: by POLICY.PARAM, which goes to whichever chosen policy of that name has the
    parameter, or by KIND.POLICY.PARAM. Raises SpecError where nobody has it, or several.
    """
    out: dict[str, dict[str, Value]] = {kind: {} for kind in chosen}
    for key, value in given.items():
        kind, param = _owner(chosen, key), key.rpartition(".")[2]
        if param in out[kind]:
            raise SpecError(f"set: {key}: given twice, with and without {kind} in front; once is enough")
        out[kind][param] = value
    return out


def meant(chosen: Mapping[str, str], key: str) -> dict[str, Mapping[str, Any]]:
    """The kinds whose chosen policy a `set` key names, each with the parameters that this policy has."""
    name = key.rpartition(".")[0]
    named = {kind: called(policy) for kind, policy in chosen.items() if policy != NONE.name}
    kinds = [kind for kind, policy in named.items() if name in (policy, f"{kind}.{policy}")]
    return {kind: find(kind, chosen[kind]).parameters for kind in kinds}


def _owner(chosen: Mapping[str, str], key: str) -> str:
    """The kind of the one chosen policy that a `set` key is about."""
    name, _, param = key.rpartition(".")
    known = meant(chosen, key)
    if not known:
        used = ", ".join(sorted({called(policy) for policy in chosen.values() if policy != NONE.name}))
        wrong = f"must be POLICY.PARAM with a policy of this run ({used}), or KIND.POLICY.PARAM"
        raise SpecError(f"set: {key}: {wrong}{_meant(chosen, name, param)}")
    owners = [kind for kind in known if param in known[kind]]
    if not owners:
        raise no_parameter(name, param, sorted({each for names in known.values() for each in names}))
    if len(owners) > 1:
        ways = " or ".join(f"--set {kind}.{key}=..." for kind in owners)
        raise SpecError(f"set: {key}: {' and '.join(owners)} are both {name} and have it; say {ways}")
    return owners[0]


def _meant(chosen: Mapping[str, str], name: str, param: str) -> str:
    """What a `set` key of nobody was probably meant as: a chosen policy's parameter, or one of a policy to choose."""
    mine = [called(policy) for kind, policy in chosen.items() if policy != NONE.name and _has(kind, policy, param)]
    if mine and not name:
        return f"; did you mean {mine[0]}.{param}?"
    theirs = [(kind, each) for kind in KINDS for each in TABLES[kind].values() if param in each.parameters]
    named = [(kind, each.name) for kind, each in theirs if each.name == plain(name)]
    kind, other = (named or [(kind, each.name) for kind, each in theirs if not name] or [("", "")])[0]
    return f"; did you mean --{kind} {other} --set {other}.{param}=...?" if other else ""


def _has(kind: str, name: str, param: str) -> bool:
    return param in find(kind, name).parameters
