"""What a request's own prompt used most: the experts to have when its decode steps begin."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from sim.fit.activation import Turns
from sim.fit.prediction import DISTANCES, Ids, Int, Prediction, Predictor, ranked, unfitted
from sim.fit.prompts import Prompts
from sim.policies.policy import From
from sim.steps import Steps
from traces.format.trace import RoutingTrace
from traces.statistics.counts import count_experts


class PopularPerRequest(Predictor):
    """What the request's prompt used at each layer, most used first: the cache warmed up from prefill.

    width      entries of a list; None = twice the trace's top-k. Best as many as a layer has slots: a prefetch spares
               residents that are on its list, so of a longer one nobody may make room for the first.
    tokens     so many generated tokens of a request, from its first on, have the list: with 1 the prompt's favourites
               are brought once, and the eviction is left alone with them.

    Ties go to the lower id. A request without prompt rows has no list; one with a prompt has a list per step, held by
    its first row there. What is asked for a layer was routed there for the whole prompt at the latest one step before.
    """

    name = "popular-per-request"
    source = "the cache warmed up from prefill, as several offloading engines do"
    search: ClassVar[Any] = {"distance": DISTANCES, "tokens": (1, 16)}
    ranges: ClassVar[Mapping[str, From]] = {**Predictor.ranges, "tokens": From(1)}

    def __init__(self, *, distance: int = 1, width: int | None = None, tokens: int = 1) -> None:
        super().__init__(distance=distance, width=width)
        self.tokens = int(self.in_range("tokens", tokens))

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        turns, prompts = Turns.of(trace, steps), Prompts.of(trace)
        request = prompts.request_of(turns)
        since = np.arange(len(turns.step)) - prompts.first_behind(turns)[request]
        warmed = np.flatnonzero((turns.step >= 0) & prompts.over(turns) & (since < self.tokens))
        whose, place = np.unique(request[warmed], return_inverse=True)
        row = np.full(len(steps.row), -1, np.int32)
        row[turns.row[warmed]] = place
        return unfitted(self._lists(trace, prompts, whose), np.broadcast_to(row, (self.distance, len(row))))

    def _lists(self, trace: RoutingTrace, prompts: Prompts, requests: Int) -> Ids:
        """int16 [1, requests, L, m]."""
        m = min(self.width or 2 * trace.top_k, trace.n_experts)
        lists = np.empty((1, len(requests), trace.n_moe_layers, m), np.int16)
        for i, r in enumerate(requests):
            prompt = trace.experts[prompts.start[r] : prompts.end[r]]
            lists[0, i] = ranked(count_experts(prompt, trace.n_experts), m)
        return lists
