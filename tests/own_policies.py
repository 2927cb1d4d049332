"""Policies as a user would write them, for test_user_policies: like built-in ones, or wrong on purpose."""

import numpy as np

from sim.core.view import CPU, DROP, FETCH

# --- eviction ---


def lru(view, state, params):
    return view.recency.argmin()


def fifo(view, state, params):
    return view.landed.argmin()


def past_the_end(view, state, params):
    return len(view.candidates)


def newest_first(view, state, params):
    """Tells from what it sees whether the view is about the candidates."""
    for i in range(len(view.candidates)):
        if view.resident[i] != 1 or view.held[i] != 0 or view.committed[i] != 0:
            raise ValueError("a candidate that cannot go")
        if view.candidates[i] == view.expert or len(view.ids) > 0 or view.token != -1:
            raise ValueError("not what eviction sees")
    return view.recency.argmax()


# --- miss ---


def drop(view, state, params):
    return DROP


def cpu(view, state, params):
    return CPU


def ranked(view, state, params):
    """The resident that the router ranks best and the token does not use, as next-ranked ungated."""
    best = FETCH
    for e in range(view.n_experts):
        if view.resident[e] and not view.used[e] and (best < 0 or view.logits[e] > view.logits[best]):
            best = e
    return best


def every_other(view, state, params):
    """Drop, fetch, drop, fetch: over the whole run, from a drop on."""
    state[0] += 1
    return DROP if state[0] % params[0] == 1 else FETCH


every_other.state, every_other.params = 1, {"of": 2}


def watchful(view, state, params):
    """Raises where the view contradicts itself or the durations of the test's plan."""
    if view.ids[view.slot] != view.expert or view.resident[view.expert] == 1 or view.used[view.expert] != 1:
        raise ValueError("the wanted expert")
    if view.weights[view.slot] != view.weight or view.tokens < 1 or view.expert_bytes != 3:
        raise ValueError("weight, tokens or bytes")
    if view.expert_ns != 5 + 2 * view.tokens or view.transfer_ns != (100 if view.backlog_bytes == 0 else 90):
        raise ValueError("gpu or link")
    idle, busy = 7 + view.tokens, 9 + 2 * view.tokens
    if view.cpu_expert_ns != busy and (view.cpu_expert_ns != idle or view.committed.any()):
        raise ValueError("cpu")
    if (view.step, view.layer) < (state[0], state[1]) or len(view.candidates) > 0:
        raise ValueError("order")
    state[0], state[1] = view.step, view.layer
    return FETCH if view.slot == 0 else CPU


watchful.state = 2


def not_resident(view, state, params):
    return view.expert


def no_expert(view, state, params):
    return view.n_experts


def no_code(view, state, params):
    return -4


def beyond(view, state, params):
    return FETCH if view.recency[view.n_experts] > 0 else DROP


def raises(view, state, params):
    if view.slot >= 0:
        raise ValueError("out of ideas")
    return FETCH


# --- re-rank ---


def adapmoe(view, state, params):
    strongest = -1
    for k in range(len(view.ids)):
        if view.ids[k] >= 0 and (strongest < 0 or view.weights[k] > view.weights[strongest]):
            strongest = k
    for k in range(len(view.ids)):
        if k != strongest and view.weights[k] ** 2 < params[0]:
            view.ids[k] = -1
    return 0


adapmoe.params = {"threshold": 0.04}


def twice(view, state, params):
    view.ids[:] = 0
    return 0


def unknown_expert(view, state, params):
    view.ids[0] = view.n_experts
    return 0


def no_weight(view, state, params):
    view.weights[0] = np.nan
    return 0


# --- prefetch ---


def again(trace, steps, ahead=1):
    """What built-in previous-token predicts."""
    row = steps.previous_rows(trace.sequence)
    return trace.experts[None], np.stack([row] * ahead)


def three_axes(trace, steps):
    return trace.experts, np.zeros((1, trace.n_tokens), np.int32)


def too_high(trace, steps):
    return trace.experts[None] + trace.n_experts, np.zeros((1, trace.n_tokens), np.int32)


def too_many_ahead(trace, steps):
    return trace.experts[None], np.zeros((trace.n_moe_layers + 1, trace.n_tokens), np.int32)


def fractions(trace, steps):
    return trace.experts[None].astype(float), np.zeros((1, trace.n_tokens), np.int32)


def nothing(trace, steps):
    return None


def fails(trace, steps):
    return trace.no_such_array


# --- not even compiled ---


def two_arguments(view, state):
    return 0


def unknown_field(view, state, params):
    return view.clock


def fraction(view, state, params):
    return 0.5


def sometimes(view, state, params):
    if view.slot == 0:
        return FETCH


def text(view, state, params):
    return "fetch"


def bad_params(view, state, params):
    return FETCH


bad_params.params = {"reach": "far"}


def bad_state(view, state, params):
    return FETCH


bad_state.state = -1


def taken(view, state, params):
    return FETCH


taken.params = {"late": 1}


def bad_needs(view, state, params):
    return FETCH


bad_needs.needs = ("logit",)

a_number = 3
