"""A number for every expert of a token (router logits, or probabilities), to the experts chosen and their weights."""

from collections.abc import Iterable

import numpy as np

from traces.foreign.models import Model
from traces.format.layout import Array

LOGITS, PROBABILITIES = "logits", "probabilities"
# What probabilities that were rounded to bf16 add up to.
SUM_ERROR = 0.02


def kind_of(blocks: Iterable[Array]) -> str | None:
    """What the numbers [..., E] of all blocks are beyond doubt: logits where one is negative, probabilities where all
    lie in [0, 1] and every token's add up to 1; None: either."""
    sure = True
    for block in blocks:
        if (block < 0).any():
            return LOGITS
        sure = sure and bool((block <= 1).all() and (np.abs(block.sum(axis=-1) - 1) <= SUM_ERROR).all())
    return PROBABILITIES if sure else None


def chosen(scores: Array, k: int, kind: str) -> tuple[Array, int]:
    """(ids int16 [n, L, k] of the highest scores [n, L, E], the lower id of equal ones first; how many of n x L had
    equal scores at the end of the list). -1 for what cannot have been chosen: probability 0, logit -inf."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., : k + 1]
    highest = np.take_along_axis(scores, order, axis=-1)
    none = 0.0 if kind == PROBABILITIES else -np.inf
    ids = np.where(highest > none, order, -1).astype(np.int16)[..., :k]
    tied = (highest[..., k] == highest[..., k - 1]) & (highest[..., k] > none) if order.shape[-1] > k else np.zeros(1)
    return ids, int(tied.sum())


def weights_of(scores: Array, ids: Array, kind: str, model: Model) -> Array | None:
    """float32 [n, L, k] as the model applies them to the experts `ids`; None where the catalog does not know its rule,
    or the scores do not tell them."""
    rule = model.score_function
    known = (
        rule in ("softmax", "softmax-topk", "sigmoid") and model.norm_topk is not None and not model.scaled_per_expert
    )
    if not known or (rule == "sigmoid" and kind == PROBABILITIES):
        return None
    own = np.take_along_axis(scores, np.maximum(ids, 0).astype(np.int64), axis=-1)
    if kind == LOGITS and rule == "sigmoid":
        own = 1 / (1 + np.exp(-own))
    elif kind == LOGITS:
        top = scores.max(axis=-1, keepdims=True)
        own = np.exp(own - top) / np.exp(scores - top).sum(axis=-1, keepdims=True)
    own = np.where(ids >= 0, own, 0)
    if model.norm_topk or rule == "softmax-topk":
        own = own / np.maximum(own.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(own * model.routed_scaling_factor, np.float32)
