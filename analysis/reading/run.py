"""A run: what was asked for, what it came to and, where there is one, the record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.core.plan import CAUSES
from sim.machines.record import RunRecord
from sim.outcome.how_sure import any_interval

MEASURED = "torch"  # the machine whose times are measured, not modelled
POLICY_FIELDS = ("eviction", "prefetch", "miss", "rerank")


@dataclass(frozen=True)
class Run:
    """One run. name: unique among the runs loaded together; source: the file or folder it came from.

    summary: the JSON object of `python -m sim.run --json`. record: None without record.npz. full: whether the file has
    every visit, execution, transfer and answer; the record's groups may have been left behind all the same
    (`load(detail=)`), and then they are empty. failed: of a row of a sweep, why others of its rows are none.
    """

    name: str
    source: str
    summary: dict[str, Any]
    record: RunRecord | None = None
    full: bool = False
    failed: tuple[str, ...] | None = None

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.summary["spec"]
        return spec

    @property
    def trace(self) -> dict[str, Any]:
        trace: dict[str, Any] = self.summary["trace"]
        return trace

    @property
    def policy(self) -> str:
        """The policies alone, `lru + gate-lookahead + buddy`: what runs of one colour have in common."""
        parts = [str(self.spec.get(name, "none")) for name in POLICY_FIELDS]
        return " + ".join(part for i, part in enumerate(parts) if i in (0, 2) or part != "none")

    @property
    def measured(self) -> bool:
        """Whether its times are a device's, not a model's."""
        return str(self.summary["machine"]) == MEASURED

    @property
    def unsure(self) -> bool:
        """Whether its speed is from catalog costs, and nobody knows how far off those are."""
        return bool(self.summary["marks"].get("catalog_costs")) and not any_interval(self.summary)

    @property
    def synthetic(self) -> bool:
        return bool(self.summary["marks"]["synthetic"])

    @property
    def reranks(self) -> bool:
        return str(self.spec.get("rerank", "none")) != "none"

    @property
    def by_rules(self) -> bool:
        """Whether it did on a miss what needs plan.on_miss: its summary says what was streamed, admitted, ..."""
        return self.summary.get("stages") is not None

    @property
    def lossy(self) -> bool:
        """Whether wanted experts may have been left out: then the replay is open-loop."""
        return bool(self.summary["marks"]["open_loop"])

    @property
    def oracle(self) -> bool:
        """Whether a policy of the run reads the future."""
        return bool(self.summary["marks"]["oracle"])

    @property
    def titled(self) -> str:
        """Its name in a title: an oracle says so."""
        return self.name + " (oracle)" * self.oracle

    @property
    def lost_weight(self) -> float | None:
        """Router weight that another expert answered for, or nobody, as a share of the wanted; None: not known."""
        quality = self.summary["quality"]
        parts = [quality.get(f"{name}_weight") for name in ("substituted", "dropped")]
        return None if None in parts else float(sum(parts))

    @property
    def partly_seen(self) -> bool:
        """Whether `lost_weight` leaves out a part of the loss: a re-ranking changes what is wanted before it is
        counted, and a low-precision copy computes something else with the same weight."""
        return self.reranks or int(self.summary["low"]) > 0

    @property
    def judged(self) -> tuple[Any, ...]:
        """What decides which requests were judged: equal for runs whose requests are the same ones."""
        calibration = self.spec.get("calibration")
        aside = (calibration, self.spec.get("seed")) if isinstance(calibration, float) else None
        return self.trace["hash"], aside, self.spec.get("as_decode", False)

    @property
    def marks(self) -> list[str]:
        """What must be said wherever a figure of this run stands."""
        marks = {
            "synthetic": self.synthetic,
            "open-loop": self.lossy,
            "oracle": self.oracle,
            "loss partly unseen": self.partly_seen,
            "does not fit": self.summary["marks"]["fits"] is False,
            "does not fit the host": (self.summary["memory"].get("host") or {}).get("fits") is False,
        }
        marks |= {"measured": self.measured, "not calibrated": self.unsure}
        return [mark for mark, holds in marks.items() if holds]


def settings(run: Run) -> dict[str, Any]:
    """What was asked for, flat: the spec's fields, parameters of policies by `policy.param`, the machine last."""
    fields = {name: value for name, value in run.spec.items() if name not in ("set", "trace")}
    given = run.spec.get("set")
    fields |= {"trace": run.trace["hash"][:12]} | (given if isinstance(given, dict) else {})
    return fields | {"machine": run.summary["machine"]}


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings that are not the same in all runs, in the order of the spec."""
    every = [settings(run) for run in runs]
    fields = dict.fromkeys(field for fields in every for field in fields)
    return [field for field in fields if len({repr(fields.get(field)) for fields in every}) > 1]


def by_cause(figures: Mapping[str, int | None]) -> dict[str, int]:
    """What a summary says of transfers by cause, less what a row of a sweep says nothing of."""
    return {cause: figures[cause] or 0 for cause in CAUSES if figures.get(cause) is not None}


def share(part: float, whole: float) -> float:
    """part / whole; 0 where there is nothing to share."""
    return part / whole if whole else 0.0
