"""Predictions that a trace brings along: what the coming routers said, or what a model learned.

Both read the array `lookahead`, which is written before the run; who wrote it, meta.lookahead_source says.
"""

from typing import ClassVar

from sim.fit.errors import FitError
from sim.fit.prediction import Ids, Prediction, Predictor, check, identity_rows, ids, length, unfitted, whole
from sim.steps import Steps
from traces.format.trace import RoutingTrace

LEARNED = "learned"  # how meta.lookahead_source begins when runtime.predictor made the lists
COMMAND = "python -m runtime.predictor --calibration A.npz --trace B.npz --out B-learned.npz"


class GateLookahead:
    """The trace's `lookahead`: the coming layers' routers asked with the hidden state of this one.

    distance   look 1 .. distance MoE layers ahead; meta.lookahead_distances must hold them all.
    width      entries of a list; None = the trace's top-k; never more than the trace's lists hold.

    Lists are a view of the array, memory-mapped if it is; cutting them shorter makes them strided.
    """

    name: ClassVar[str] = "gate-lookahead"
    needs: ClassVar[tuple[str, ...]] = ("lookahead",)
    fitted: ClassVar[bool] = False
    oracle: ClassVar[bool] = False
    source: ClassVar[str] = "speculative expert loading: Eliseev and Mazur, arXiv 2312.17238, section 3.2"

    def __init__(self, *, distance: int = 1, width: int | None = None) -> None:
        self.distance = whole(self.name, "distance", distance)
        self.width = None if width is None else whole(self.name, "width", width)

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """Lists int16 [D, T, L, m], no copy of an int16 array. Raises FitError where the trace has no
        lookahead, lacks a distance, or foretells a layer below the distance, which no hidden state of that
        token could."""
        check(self, trace)
        return _looked_up(self, trace, self.width)


class Learned:
    """A small model's lists, made before the run by `python -m runtime.predictor` and kept in `lookahead`.

    distance   look 1 .. distance MoE layers ahead; meta.lookahead_distances must hold them all.
    width      entries of a list; None = the trace's top-k; never more than the trace's lists hold.

    The same as gate-lookahead on a trace whose meta.lookahead_source begins with "learned", and on no other.
    It was fitted on a calibration trace of its own (meta.lookahead_model names it), which should share no
    request with this one; the run's --calibration does not matter to it.
    """

    name: ClassVar[str] = "learned"
    needs: ClassVar[tuple[str, ...]] = ()  # `predict` refuses a trace without lookahead: it names the command
    fitted: ClassVar[bool] = False
    oracle: ClassVar[bool] = False
    source: ClassVar[str] = "this project"

    def __init__(self, *, distance: int = 1, width: int | None = None) -> None:
        self.distance = whole(self.name, "distance", distance)
        self.width = None if width is None else whole(self.name, "width", width)

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """Lists int16 [D, T, L, m], no copy of an int16 array. Raises FitError as gate-lookahead does, for a
        trace whose lists no model has learned, and for lists made for decode steps (`--as-decode`: they see
        the previous prompt token) in a run with prefill steps."""
        check(self, trace)
        made_by = trace.meta.get("lookahead_source")
        if trace.lookahead is None or not str(made_by).startswith(LEARNED):
            raise FitError(f"{self.name}: the trace's lookahead is not of a learned model; make one: {COMMAND}")
        about = trace.meta.get("lookahead_model")
        if isinstance(about, dict) and about.get("as_decode") and steps.prefill.any():
            raise FitError(
                f"{self.name}: the lists were made --as-decode and the run has prefill steps; "
                "run it --as-decode, or make them without"
            )
        return _looked_up(self, trace, self.width)


def _looked_up(predictor: Predictor, trace: RoutingTrace, width: int | None) -> Prediction:
    there, wanted = trace.lookahead_distances, tuple(range(1, predictor.distance + 1))
    if there[: predictor.distance] != wanted:  # the format lists them ascending
        raise FitError(
            f"{predictor.name}: distance {predictor.distance} needs lookahead distances {list(wanted)}; "
            f"the trace has {list(there)}"
        )
    assert trace.lookahead is not None  # the caller has seen it
    lists: Ids = ids(trace.lookahead)[: predictor.distance, :, :, : length(width, trace)]
    for d in wanted:
        if (lists[d - 1, :, :d] >= 0).any():
            raise FitError(f"{predictor.name}: lookahead at distance {d} has entries at layers below {d}; -1 is needed")
    return unfitted(lists, identity_rows(predictor.distance, trace.n_tokens))
