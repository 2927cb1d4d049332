"""Policies of a user's own: those of docs/policies.md, and some that go wrong."""

import time

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


def thrifty(view, state, params):
    """Little weight: the best ranked resident; else the CPU where it is faster, else wait."""
    best = -1
    for e in range(view.n_experts):
        if view.resident[e] and not view.used[e] and (best < 0 or view.logits[e] > view.logits[best]):
            best = e
    if view.weight < params[0] and best >= 0:
        return best
    return CPU if view.cpu_expert_ns + view.host_backlog_ns < view.transfer_ns + view.expert_ns else FETCH


thrifty.params, thrifty.needs = {"below": 0.3}, ("weights", "logits")


def gentle(view, state, params):
    """The weakest slot takes a resident whose logit is at most `margin` lower."""
    k, best = view.weights.argmin(), -1
    for e in range(view.n_experts):
        if view.resident[e] and not (view.ids == e).any() and (best < 0 or view.logits[e] > view.logits[best]):
            best = e
    weakest = view.ids[k]
    if (
        best >= 0
        and weakest >= 0
        and not view.resident[weakest]
        and view.logits[weakest] - view.logits[best] < params[0]
    ):
        view.ids[k] = best
    return 0


gentle.params, gentle.needs = {"margin": 0.5}, ("weights", "logits")


def again(trace, steps, ahead=1):
    """What the request's last token used at the same layer, the strongest first."""
    row = steps.previous_rows(trace.sequence)
    return trace.experts[None], np.stack([row] * ahead)


def not_there(view, state, params):
    return view.expert


def fails(view, state, params):
    if view.slot >= 0:
        raise ValueError("out of ideas")
    return FETCH


def clock(view, state, params):
    return FETCH if time.time() > 0 else CPU
