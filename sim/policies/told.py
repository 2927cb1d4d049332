"""What each policy does, a paragraph, for `sim.run --describe`: the definition, where the registry has a line.

Of evictions it is the row of docs/evictions.md, word for word (a test says so). A prefetcher's, and a user's own, is
its docstring.
"""

from collections.abc import Mapping

# the resident with the least of this goes
SCORES: Mapping[str, str] = {
    "lru": "the last touch",
    "fifo": "the landing",
    "lfu": "uses over the run, kept across evictions, or with `since=landing` since it landed",
    "lfru": "f / (age + 1): f uses since it landed (`since=ever`: over the run), age in visits of its scope since "
    "its last use",
    "decayed": "uses, each times `decay` per visit of its layer since",
    "lru-k": "when the `k`-th last use was; used less often: before all others",
    "reuse-interval": "minus the visits until the predicted next use: last use + a moving mean of intervals (`alpha` "
    "for the newest); without a mean infinite; an overdue one is expected after as long again as it has waited",
    "layer-distance": "minus the visits until its layer comes again, the one being served last",
    "least-stale": "touched in this step or not, then the last use (without prefetches this is `lru`)",
    "window-score": "router weight in the last `window` visits of its layer",
    "activation-matrix": "(share of its layer's tokens in the requests being served + 1e-6) x (1 - layer / layers)",
    "mrs": "alpha x p + (1 - alpha) x score at each visit of its layer, p the mean over the rows of its probability "
    "where it is among the 2 x top-k highest",
    "hobbit-priority": "(uses + `low` x uses of its low-precision copy) / steps + (used in its layer's latest visit) "
    "/ (visits until its layer comes again + 0.1); all counted from the first step of a request that is served alone",
    "belady": "minus the next visit that wants it (oracle)",
    "min": "as `belady`, and a newcomer wanted later than every resident is streamed and not kept (oracle). Exact "
    "where a visit wants one expert; where it wants several, no hit of the visit gives its place to a newcomer of "
    "it, and `min` misses up to a tenth more than the floor of `analysis.miss_curve`",
    "belady-w": "as `min` where the next use lies within `w` steps, which beats all others; else decayed uses of "
    "`half_life` (oracle)",
    "random": "a hash",
}
# nobody goes, or not for a miss
FIXED: Mapping[str, str] = {
    "static": "nobody goes: a newcomer takes no slot",
    "window-swap": "as `static`, but in every `window`-th visit of a layer its `swap` most wanted outsiders of the "
    "last `window` visits are fetched in the background, best for worst, each while it has more entries than whom it "
    "replaces",
}
LISTS: Mapping[str, str] = {
    "sieve": "in order of landings, a bit set by a re-use. A hand walks to the new end and wraps, clears bits, takes "
    "the first clear one and stays behind it",
    "clock": "from the old end each time; a set bit is cleared and its expert moves to the new end",
    "s3-fifo": "a small list of max(1, floor(`small` x C)), main, and as many ghosts as main. Newcomers enter small, "
    "ghosts main (a ghost is none any more before the eviction that makes its room), with a count of 0. While small "
    "is full: its oldest goes to main if used twice again, else out and becomes a ghost; else main's oldest, whose "
    "count (to 3) is decremented for another turn",
    "arc": "T1, T2, ghosts B1, B2, target p: Megiddo and Modha's Fig. 4; p is real",
    "w-tinylfu": "a window of max(1, floor(`window` x C)), probation, protected of `protected` x the rest. The "
    "window's oldest stays where its frequency is higher than that of the oldest behind it. Frequencies count uses "
    "to 15 and halve every 10 x C of them; they are exact: there are too few experts for a sketch",
}
_GATED = (
    "For each token the gates are asked first: TAE (`tau`: is the router undecided enough?), margin (`gamma`) and "
    "distribution (`beta`, `budget`). Then its missing slots, most router weight first, may have `rho` stand-ins; what "
    "gets none is answered by `fallback`. The routing stays the trace's: a lossy answer changes no later routing here."
)
MISS: Mapping[str, str] = {
    "fetch": "The visit waits until the expert is in a slot, and somebody goes by `--eviction`. Lossless; what every "
    "engine does that knows nothing else.",
    "drop": "The slot adds nothing to the token's output. Lossy: how much router weight goes missing stands in the "
    "summary as dropped. In prefill steps it fetches, unless `prefill` is yes.",
    "drop-by-weight": "As drop for slots of little router weight, as fetch for the others.",
    "mean-output": "A slot of little router weight is answered by one vector, the mean of what its expert says to the "
    "tokens that are routed to it, which stays on the GPU: nothing crosses the link and no expert runs. As fetch for "
    "the others. To a replay it is drop-by-weight, for adding a vector is not timed; `runtime.evaluate` measures the "
    "means on text that is not judged, and adds them.",
    "hobbit": "A token's slots in order of router weight: as long as the weight in front of a slot is at most the "
    "share `full` of all, the expert itself is fetched; up to `low` its low-precision copy, which has slots of its "
    "own; beyond that the slot is dropped. What copies of low precision cost in quality a replay does not know.",
    "cpu": "The host computes the expert on the token's activations while the GPU goes on with the residents; the "
    "layer ends when both are done. Nothing crosses the link and no slot changes.",
    "stream": "The expert is copied into a staging buffer, runs from there, and is forgotten: no resident goes, and "
    "the next use copies it again. `--stages` bounds the buffers.",
    "remote": "The GPU reads the weights over the link while it computes; nothing becomes resident. It takes the "
    "link and the GPU together, for the longer of the two times, at every use.",
    "cpu-admit": "The host computes the miss at once, and the expert may follow over the link for the next time, "
    "without anybody waiting: a count of its misses decides when it may take a free slot, and when a resident's.",
    "split": "A visit's misses are divided between the link and the host before any is answered: by the number whose "
    "slower side ends first (share), one by one to whoever would end first (makespan), or by a stated table.",
    "fiddler": "Each missing expert goes where it is done earlier: on the CPU, or over the link and then on the GPU. "
    "Lossless: nobody stands in for anybody.",
    "buddy": "A resident that calibration saw used together with the missing expert stands in for it "
    "(Algorithm 1 of the paper). Buddy lists are fitted on --calibration, or come from a file of python -m "
    "sim.profile. " + _GATED,
    "buddy-b": "buddy in the other reading of the paper's tables: `alpha` .95 is how much of the "
    "co-activation a list covers, and the TAE gate lies at the 15th percentile of the calibration. " + _GATED,
    "buddy-first-fit": "The first resident of the buddy list stands in, whatever the token: no gate, no limit. What "
    "the paper's gates are worth is the difference between this and buddy.",
    "matched-random": "Where buddy would have a stand-in, a random resident is taken. What buddy lists are "
    "worth is the difference between this and buddy. " + _GATED,
    "matched-next-ranked": "Where buddy would have a stand-in, the resident that the token's own router "
    "ranks best is taken. " + _GATED,
    "matched-drop": "Where buddy would have a stand-in, the slot is dropped instead. " + _GATED,
    "matched-mean": "Where buddy would have a stand-in, the mean output of the missing expert stands in (see "
    "mean-output). " + _GATED,
    "mixed": "buddy, and where nobody stands in the cheaper of the CPU and a fetch, each with what this "
    "visit has given it already. " + _GATED,
    "similarity": "buddy whose lists are in order of functional similarity, from a matrix that python -m "
    "runtime.similarity measures on the model itself. " + _GATED,
    "speculate": "Where all experts that were predicted for the token (its first top-k entries of the trace's "
    "lookahead) are resident, those of them that it does not use run in place of its missing ones, with their router "
    "weight; else it waits for its own.",
    "random": "A random resident of the layer stands in for every missing expert: the least that a substitute can be.",
    "next-ranked": "The resident that the token's router ranks best stands in for every missing expert.",
}
RERANK: Mapping[str, str] = {
    "cache-prior": "Before experts are chosen the logits of residents are raised, so that near ties go to whoever is "
    "there. The rise is `strength` times the running mean of a layer's range of logits.",
    "max-rank": "Of the router's ranking the first `always` stay; then come residents among the first `among`, then "
    "the others, until top-k are chosen.",
    "cache-prior-mass": "As max-rank, whose ranks end where their probabilities add up to `mass`, however many that "
    "are.",
    "tolerance": "Slot by slot, of the experts left: the most probable resident whose probability is at least (1 - "
    "`tolerance`) times the best one's, else the best one. A resident may take another resident's place.",
    "smoe": "With m the probability just below the cut: a missing expert whose own is below m (1 + `margin`) gives "
    "way to the best unused resident above m (1 - `margin`).",
    "adapmoe": "Of a token's experts all but the strongest are left out whose squared router weight is below "
    "`threshold`: fewer experts, fewer misses.",
    "sere": "In a batch, an expert that is nobody's primary one is replaced by the most similar that is somebody's, "
    "so that fewer different experts are wanted.",
}
PLACEMENT: Mapping[str, str] = {
    "first": "As many experts of each layer as it has slots, from id 0. They are there at time 0, free of charge.",
    "empty": "All slots are free at time 0, and the first uses miss.",
    "popular": "Each layer starts with the experts that its calibration tokens used most.",
    "global-popular": "The most used (layer, expert) pairs of all layers together start resident, so that layers may "
    "have different numbers of slots.",
    "profile": "As popular, from a file of counts that an engine wrote.",
    "random": "As many experts of each layer as it has slots, by a hash: what a choice is worth is the difference.",
    "buddy-coverage": "Experts are taken one by one, each time the one that with its buddies covers most router "
    "weight of the calibration that is not covered yet.",
}


def paragraph(kind: str, name: str) -> str:
    """What a policy of the registry does; empty of one that nothing is told of."""
    if kind == "eviction" and name in SCORES:
        return f"Who goes is the evictable resident with the least score: {SCORES[name]}."
    told = {"eviction": {**LISTS, **FIXED}, "miss": MISS, "rerank": RERANK, "placement": PLACEMENT}
    text = told.get(kind, {}).get(name, "")
    return f"Who goes: {text}." if kind == "eviction" and text else text
