"""Buddy lists: for every expert, the peers that may stand in for it, best first (BuddyMoE, arXiv 2511.10054).

From a calibration trace, held out from what is measured (P): M(i, j) and q(j|i) as in `coactivation`; then
per layer

    t_i(alpha) = the smallest t with q of the t best peers of i summing to >= alpha
    B(i; alpha) = those peers, in descending q;   1 <= |B| <= K_max

or from a matrix of expert similarity (I; the paper shows one in its Fig. 4, without its metric). A sum counts
as having reached alpha when it lacks less than 1e-12: .3 + .3 + .3 is .8999999999999999 in float64. Equal
peers are ordered by a seeded hash of (layer, i, j), never by index: on a small sample most are equal, and
an order by index would give half the experts the same buddies.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from sim.fit.coactivation import CoActivation, check_cells, co_activation, conditional
from traces.format.npz import content_hash
from traces.format.trace import RoutingTrace, hash64

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

SCHEMA = "moe-offload-sim buddy lists"
FORMAT_VERSION = 1
TOLERANCE = 1e-12
SIMILARITY_SLACK = 1e-3  # a cosine of 1 that was rounded to float16 on its way


@dataclass(frozen=True, eq=False)
class BuddyLists:
    """The lists of one model, read-only. W = min(K_max, E - 1) is the longest that a list can be.

    peers     int16 [L, E, W]: B(i) of each layer's expert i, best first, distinct, never i; -1 after the end.
    q         float32 [L, E, W]: q(j|i) of these peers, not rising along a list; 0 after its end.
    coverage  float64 [L, E]: the sum of q over the list, before q was rounded.
    meta      schema, format_version, version, how ("co-activation" or "similarity"), n_experts, alpha (a
              number, or one for each layer), k_max, seed, and where the lists come from: see PROVENANCE in
              `buddies_file`.

    A list is empty only where a similarity threshold left nobody. Building one checks nothing: see
    `buddies_file.validate`.
    """

    peers: npt.NDArray[np.int16]
    q: npt.NDArray[np.float32]
    coverage: Float
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        for name in ("peers", "q", "coverage"):
            view = np.asarray(getattr(self, name)).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """|B(i)|: int64 [L, E]."""
        sizes: npt.NDArray[np.int64] = np.count_nonzero(self.peers >= 0, axis=2)
        return sizes

    @property
    def n_moe_layers(self) -> int:
        return int(self.peers.shape[0])

    @property
    def n_experts(self) -> int:
        return int(self.peers.shape[1])

    @property
    def alpha(self) -> Float:
        """float64 [L]."""
        return np.broadcast_to(np.array(self.meta["alpha"], np.float64), self.n_moe_layers)

    @property
    def bound(self) -> npt.NDArray[np.bool_]:
        """bool [L, E]: where K_max ended the list before it covered alpha."""
        short = self.coverage < self.alpha[:, None] - TOLERANCE
        full: npt.NDArray[np.bool_] = self.sizes == self.peers.shape[2]
        return full & short

    def require_fit(self, trace: RoutingTrace) -> None:
        """Raise SpecError unless these lists are of the trace's shape: MoE layers and experts."""
        have, want = (self.n_moe_layers, self.n_experts), (trace.n_moe_layers, trace.n_experts)
        if have != want:
            of = f"buddy lists are of {have[0]} MoE layers and {have[1]} experts"
            raise SpecError(f"{of}; the trace of {trace.model} has {want[0]} and {want[1]}")
        layers = self.meta.get("moe_layers")
        if layers is not None and layers != list(trace.meta["moe_layers"]):
            raise SpecError(f"buddy lists are of other MoE layers than the trace of {trace.model}")


@dataclass
class BuddyProfile:
    """BuddyMoE's offline profile: `BuddyProfile(alpha=0.9).fit(trace).lists_`.

    alpha          in (0, 1], a number or one for each MoE layer: the CFT, cumulative frequency threshold (P);
                   no value was found, 0.9 is ours (I).
    k_max          longest list; 5 to 20 is typical (P), 16 in the evaluation (N).
    count          "binary" (default: I), "weighted" or "mixed": both counts are P, how they mix is I.
    mix            share of the weighted counts in "mixed" (I).
    eps            smoothing: M + eps off the diagonal (P); no value was found. 1e-6 (I) makes the row of an
                   expert never seen with another uniform, and changes no list unless alpha is about 1.
    warmup         first tokens of each request that count less: weighting a warm-up down is P, where it
                   lies is I; 0 = none.
    warmup_weight  what each of them counts, 0 .. 1 (I).
    decode_only    count generated tokens alone (I).
    seed           of the hash that orders equal peers (ours, after what others measured).

    After `fit`: lists_ (BuddyLists) and counts_ (CoActivation).
    """

    alpha: float | Sequence[float] = 0.9
    k_max: int = 16
    count: str = "binary"
    mix: float = 0.5
    eps: float = 1e-6
    warmup: int = 0
    warmup_weight: float = 0.5
    decode_only: bool = False
    seed: int = 0

    def fit(self, trace: RoutingTrace, name: str = "") -> Self:
        """Learn the lists of a whole trace. name: of its file, kept as provenance.

        Raises SpecError for a parameter out of range and for what the trace lacks.
        """
        alpha = _alphas(self.alpha, trace.n_moe_layers)
        _check_k_max(self.k_max)
        try:
            self.counts_: CoActivation = co_activation(
                trace, self.count, self.mix, self.warmup, self.warmup_weight, self.decode_only
            )
        except SpecError as error:
            raise SpecError(f"{name or 'trace'}: {error}") from None
        q = conditional(self.counts_.m, self.eps)
        parts = _lists(q, q, alpha, self.k_max, self.seed)
        self.lists_ = BuddyLists(*parts, meta=self._meta(trace, name))
        return self

    def _meta(self, trace: RoutingTrace, name: str) -> dict[str, Any]:
        m = self.counts_.m
        alone = m.sum(axis=2) - np.diagonal(m, axis1=1, axis2=2) <= 0
        source = {"name": name, "content_hash": content_hash(trace), "model": trace.model, "real": trace.real}
        return _head("co-activation", self.alpha, self.k_max, self.seed, trace.n_experts) | {
            "moe_layers": list(trace.meta["moe_layers"]),
            "trace": source,
            "count": self.count,
            "mix": float(self.mix),
            "eps": float(self.eps),
            "warmup": int(self.warmup),
            "warmup_weight": float(self.warmup_weight),
            "decode_only": bool(self.decode_only),
            "n_tokens": self.counts_.n_tokens,
            "mean_pairs": self.counts_.mean_pairs,
            "pairs_per_token": self.counts_.mean_pairs / self.counts_.n_tokens,
            "experts_alone": int(alone.sum()),
        }


def from_similarity(
    matrix: npt.ArrayLike,
    k_max: int = 16,
    alpha: float | Sequence[float] = 1.0,
    threshold: float | None = None,
    seed: int = 0,
    name: str = "",
    about: dict[str, Any] | None = None,
) -> BuddyLists:
    """Buddy lists from similarities of experts [L, E, E], from -1 to 1, row i = similarity to i; ours (I).

    A list is in descending similarity, whatever its sign; q(j|i) is the positive part over the row's sum of
    positive parts off the diagonal (uniform where there is none); it ends as above, by alpha (1: the last
    peer of positive similarity) or k_max, and before the first peer below `threshold`, which may leave
    nobody. The matrix need not be symmetric, its diagonal is not looked at. name: of its file; about: what is
    known of it (model, metric, source, licence are kept). Raises SpecError.
    """
    given = np.array(matrix, np.float64)
    check_similarity(given, name or "similarity")
    np.einsum("lii->li", given)[...] = 0
    _check_k_max(k_max)
    if threshold is not None and not -1 <= threshold <= 1:
        raise SpecError(f"threshold is {threshold}; a similarity from -1 to 1 is required")
    q = conditional(np.maximum(given, 0))
    parts = _lists(given, q, _alphas(alpha, len(given)), k_max, seed, threshold)
    known = {k: v for k, v in (about or {}).items() if k in ("model", "metric", "source", "licence")}
    digest = hashlib.sha256(f"{given.shape}".encode() + given.astype("<f8").tobytes()).hexdigest()
    symmetric = bool(np.allclose(given, given.transpose(0, 2, 1), rtol=0, atol=1e-6))
    meta = _head("similarity", alpha, k_max, seed, given.shape[1]) | {
        "threshold": None if threshold is None else float(threshold),
        "similarity": {"name": name, "content_hash": digest, "symmetric": symmetric, "about": known},
    }
    return BuddyLists(*parts, meta=meta)


def check_similarity(matrix: Float, name: str) -> None:
    """Raise SpecError, one line that begins with `name`, for what is no similarity matrix [L, E, E]."""
    if matrix.ndim != 3 or matrix.shape[1] != matrix.shape[2] or len(matrix) == 0:
        raise SpecError(f"{name}: similarity has shape {matrix.shape}; [MoE layers, experts, experts] is required")
    check_cells(matrix.shape[0], matrix.shape[1])
    inside = np.abs(matrix) <= 1 + SIMILARITY_SLACK  # false for NaN
    np.einsum("lii->li", inside)[...] = True
    if not inside.all():
        at = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise SpecError(f"{name}: similarity{list(at)} = {matrix[at]}; a number from -1 to 1 is required")


def _alphas(alpha: float | Sequence[float], layers: int) -> Float:
    values = np.array(alpha, np.float64)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != layers):
        raise SpecError(f"alpha has {values.size} values; one, or one for each of {layers} MoE layers is required")
    bad = values[~((values > 0) & (values <= 1))]
    if bad.size:
        raise SpecError(f"alpha is {bad.flat[0]}; a share in (0, 1] is required")
    return np.broadcast_to(values, layers)


def _check_k_max(k_max: int) -> None:
    if k_max < 1:
        raise SpecError(f"k_max is {k_max}; a list has at least one peer")


def _head(how: str, alpha: float | Sequence[float], k_max: int, seed: int, n_experts: int) -> dict[str, Any]:
    try:
        installed = version("moe-offload-sim")
    except PackageNotFoundError:  # run from a source tree
        installed = "unknown"
    return {
        "schema": SCHEMA,
        "format_version": FORMAT_VERSION,
        "version": installed,
        "how": how,
        "alpha": np.array(alpha, np.float64).tolist(),
        "k_max": int(k_max),
        "seed": int(seed),
        "n_experts": int(n_experts),
    }


def _lists(
    score: Float, q: Float, alpha: Float, k_max: int, seed: int, threshold: float | None = None
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32], Float]:
    """(peers, q, coverage) of the lists in descending score, cut by alpha, k_max and threshold."""
    layers, n, _ = score.shape
    width = min(k_max, n - 1)
    peers = np.full((layers, n, width), -1, np.int16)
    shares = np.zeros((layers, n, width), np.float32)
    coverage = np.zeros((layers, n))
    for layer in range(layers):
        best = _ranked(score[layer], layer, seed)[:, :width]
        share = np.take_along_axis(q[layer], best, axis=1)
        covered = np.cumsum(share, axis=1)
        # A peer belongs to the list while those before it do not cover alpha; the first one always does.
        kept = np.ones_like(best, np.bool_)
        kept[:, 1:] = covered[:, :-1] < alpha[layer] - TOLERANCE
        if threshold is not None:
            kept &= np.take_along_axis(score[layer], best, axis=1) >= threshold
        peers[layer] = np.where(kept, best, -1)
        shares[layer] = np.where(kept, share, 0)
        coverage[layer] = np.where(kept, covered, 0).max(axis=1)
    return peers, shares, coverage


def _ranked(score: Float, layer: int, seed: int) -> npt.NDArray[np.int64]:
    """int64 [E, E - 1]: the peers j of each expert i by descending score.

    Equal ones by hash64(seed, cell, 0), where cell = (layer E + i) E + j.
    """
    n = len(score)
    cell = layer * n * n + np.arange(n * n)
    descending = -score
    np.fill_diagonal(descending, np.inf)
    order = np.lexsort((hash64(seed, cell, 0).reshape(n, n), descending), axis=-1)
    return order[:, :-1]
