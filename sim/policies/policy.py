"""What a policy is: one object, which says all that anybody knows of it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sim.core import substitution
from sim.core.hooks import Hook
from sim.core.plan import MARKS, SPLITS, Choice
from sim.errors import SpecError, unknown
from sim.policies.kinds import Value


def _numbered(*words: str) -> dict[str, float]:
    return {word: float(i) for i, word in enumerate(words)}


MANY = 1e9  # no limit
_YES_NO = ("warm", "keep", "atomic", "prefill", "late", "matched", "lowest_first", "background", "touch", "backlog")
# parameters that are said in words, each with its words and their numbers in the core; POLICY.PARAM: of one policy
WORDS: Mapping[str, Mapping[str, float]] = {
    "selector": _numbered("list", "random", "next", "drop", "nobody"),
    "fallback": _numbered("fetch", "drop", "cpu", "cheaper"),
    "count": _numbered("binary", "weighted", "mixed"),
    "by": _numbered(*SPLITS),
    **dict.fromkeys(_YES_NO, _numbered("no", "yes")),
    **{key: {"unlimited": -1.0} for key in ("inserts", "queue", "max_rows")},
    **{key: {"unlimited": MANY} for key in ("rho", "search")},
    **{key: {"none": -1.0} for key in ("tau", "percentile", "decayed.kappa")},
    **{key: {"none": 2.0} for key in ("beta", "gamma")},
    "since": _numbered("landing", "ever"),
    "ties": _numbered("older", "id"),
    "touches": _numbered("run", "listed"),
}


class From(NamedTuple):
    """The numbers that a parameter may be: from `least` (above it, with `above`) to `most`, whole ones unless it says
    otherwise."""

    least: float
    whole: bool = True
    most: float = math.inf
    above: bool = False

    def holds(self, value: Value) -> bool:
        if isinstance(value, str) or not self.least <= value <= self.most or not math.isfinite(value):
            return False
        return (float(value).is_integer() or not self.whole) and not (self.above and value == self.least)

    def __str__(self) -> str:
        to = "" if self.most == math.inf else f", at most {self.most:g}" if self.above else f" to {self.most:g}"
        return f"a {'whole ' if self.whole else ''}number {'above' if self.above else 'from'} {self.least:g}{to}"


@dataclass(frozen=True)
class Policy:
    """One named policy, and all that anybody knows of it.

    kind: its code in the core. params: name -> default, in the order the core takes them; prepared: parameters that the
    plan uses up beforehand; needs: arrays of the trace. fitted: needs --calibration. oracle: reads the future. lossy:
    may leave a wanted expert out, or another take its place. mean: for whom it leaves out a model is to add the mean of
    what that expert says (the closed loop's doing; to a replay it is left out). answers_cpu: the host may compute an
    expert (of the substitution family `selector` and `fallback` say both, whatever they are set to). keeps: what the
    core does for an eviction, words of plan.MARKS; adds: those that its parameters, as numbers, add. means: what each
    parameter means; more: what it does (of those of the registry that sim.policies.told does not tell); ranges: the
    numbers that a parameter may be, where not any. weighs: of an eviction, whether what it keeps a resident for is
    known of a newcomer, too. spreads: of a placement, whether it sets the slots of each layer, too. search: what
    sim.recommend tries of it: by parameter the values that are worth it, the plainest first; None: nothing. lists:
    where its buddy lists come from ("" none, "buddies", "similarity").
    make: of a prefetcher, its predictor (sim.fit.prediction.Predictor) from parameters; drafts: whether its lists are
    of speculative windows, and what joins is what comes in time.
    Of a user's own (sim.policies.user), which sees whatever the trace has: hook: its function, compiled; numbers: of a
    class, what an instance of these parameters holds, as the core takes it; sha256: of its file, or of what is in
    memory; origin: where that, or a plug-in's, came from.
    """

    name: str
    kind: int
    doc: str
    source: str
    params: Mapping[str, float] = field(default_factory=dict)
    prepared: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    fitted: bool = False
    oracle: bool = False
    lossy: bool = False
    mean: bool = False
    answers_cpu: bool = False
    keeps: tuple[str, ...] = ()
    adds: Callable[[Mapping[str, float]], Iterable[str]] | None = None
    means: Mapping[str, str] = field(default_factory=dict)
    more: str = ""
    ranges: Mapping[str, From] = field(default_factory=dict)
    weighs: bool = False
    spreads: bool = False
    search: Mapping[str, tuple[Any, ...]] | None = None
    lists: str = ""
    make: Callable[..., Any] | None = None
    drafts: bool = False
    hook: Hook | None = None
    numbers: Callable[[Mapping[str, Any]], list[float]] | None = None
    sha256: str = ""
    origin: str = ""

    @property
    def user(self) -> bool:
        """Whether it is a user's own."""
        return bool(self.sha256)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Every parameter and its default."""
        return {**self.params, **self.prepared}

    def values(self, given: Mapping[str, Value]) -> dict[str, Any]:
        """Every parameter: as given, else its default. Raises SpecError for one it has not or that is no number."""
        known = self.parameters
        for key, value in given.items():
            if key not in known:
                raise no_parameter(self.name, key, known)
            if value not in self.words(key):
                self._refuse_unless_number(key, value)
        return {**known, **given}

    def words(self, key: str) -> Mapping[str, float]:
        """The words for a parameter, with their numbers; what a user's own means by that name only it knows."""
        return {} if self.user else WORDS.get(f"{self.name}.{key}") or WORDS.get(key, {})

    def allowed(self, key: str) -> str:
        """What a parameter may be, in words."""
        words = self.words(key)
        if key in self.ranges:
            return " or ".join([str(self.ranges[key]), *words])
        return ", ".join(words) or ("text" if isinstance(self.parameters[key], str) else "any number")

    def said(self, key: str) -> str:
        """A parameter's default, as --set takes it; None: as its meaning says."""
        value = self.parameters[key]
        words = [word for word, number in self.words(key).items() if number == value]
        return words[0] if words else f"{value:g}" if isinstance(value, float) else str(value)

    def _refuse_unless_number(self, key: str, value: Value) -> None:
        """Of a value that is no word for the parameter."""
        field, words = f"set: {self.name}.{key}", self.words(key)
        if key in self.ranges:
            if not self.ranges[key].holds(value) and value not in words.values():
                raise SpecError(f"{field}={value}: must be {self.allowed(key)}")
        elif words and (isinstance(value, str) or value not in words.values()):
            raise unknown(field, str(value), words)
        elif isinstance(value, str) and not isinstance(self.parameters[key], str):
            raise SpecError(f"{field}={value}: must be a number")

    def predictor(self, given: Mapping[str, Value]) -> Any:
        """A prefetcher's predictor, None of `none`. Raises SpecError for a parameter that it does not have; what values
        they may have the predictor says."""
        for key in given:
            if key not in self.parameters:
                raise no_parameter(self.name, key, self.parameters)
        return None if self.make is None else self.make(**given)

    def may_answer_cpu(self, given: Mapping[str, Value]) -> bool:
        """Whether the host may compute an expert under these parameters."""
        return self.answers_cpu or self._falls(given) in (substitution.FALL_CPU, substitution.FALL_CHEAPER)

    def may_be_lossy(self, given: Mapping[str, Value]) -> bool:
        """Whether a wanted expert may be left out or replaced under these parameters."""
        selector = self._substitutes("selector", given, substitution.SELECT_NOBODY)
        return self.lossy or selector != substitution.SELECT_NOBODY or self._falls(given) == substitution.FALL_DROP

    def _falls(self, given: Mapping[str, Value]) -> float:
        """What the substitution family answers where nobody stands in."""
        return self.number("fallback", self._substitutes("fallback", given, substitution.FALL_FETCH))

    def _substitutes(self, key: str, given: Mapping[str, Value], otherwise: Value) -> Value:
        """A parameter of the substitution family; what a user's own means by that name only it knows."""
        return otherwise if self.user else self.values(given).get(key, otherwise)

    def choice(self, given: Mapping[str, Value]) -> Choice:
        """As the core takes it."""
        values = self.values(given)
        lossy, cpu = self.may_be_lossy(given), self.may_answer_cpu(given)
        marks = {*self.keeps, *(["lossy"] if lossy else []), *(["cpu"] if cpu else [])}
        if self.adds is not None:
            marks |= {*self.adds({key: self.number(key, value) for key, value in values.items()})}
        mine = {key: values[key] for key in self.params}
        numbers = [self.number(*each) for each in mine.items()] if self.numbers is None else self.numbers(mine)
        params = np.array(numbers, np.float64)
        return Choice(self.name, self.kind, params, self.hook, sum(1 << MARKS.index(mark) for mark in marks))

    def number(self, key: str, value: Value) -> float:
        """A parameter's value as a number: of a word, the core's."""
        return self.words(key)[value] if isinstance(value, str) else float(value)


NONE = Policy("none", -1, "no prefetcher, or no re-ranking", "")  # of the kinds that a run may do without


def no_parameter(name: str, key: str, known: Iterable[str]) -> SpecError:
    """Of a policy of that name, which has the `known` ones."""
    if not known:
        return SpecError(f"set: {name}.{key}: {name} has no parameters")
    return unknown(f"set: parameter of {name}", key, known)


def is_user(name: str) -> bool:
    """Whether a policy's name is FILE.py:FUNCTION: a user's own."""
    return name.rpartition(":")[0].endswith(".py")


def called(name: str) -> str:
    """What --set calls a policy: the function of a user's own, else its name."""
    return name.rpartition(":")[2] if is_user(name) else name
