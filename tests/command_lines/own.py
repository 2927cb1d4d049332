"""Policies of a user's own, those of docs/policies.md and some that go wrong."""

import numpy as np

from sim.core.view import CPU, FETCH


def rarest(view, state, params):
    """The fewest uses go, but the last `spared` to be touched stay."""
    newest, best = view.recency.max(), -1
    for i in range(len(view.candidates)):
        spared = newest - view.recency[i] < params[0]
        if not spared and (best < 0 or view.uses[i] < view.uses[best]):
            best = i
    return best if best >= 0 else view.recency.argmin()


rarest.params = {"spared": 4}
