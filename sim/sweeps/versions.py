"""Which compiled version of the machine a run takes, so that each is compiled by one worker while the others do what
they can."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import islice

from sim.core.plan import BY_WORTH, KEEPS_OUT, TOLD_MORE
from sim.core.rules import BY_RULE
from sim.engines import FIT
from sim.memo import Kept, Memo
from sim.on_miss import OWN, Rules, slowed
from sim.policies.kinds import KINDS
from sim.policies.policy import is_user
from sim.policies.registry import find
from sim.prepare import Described, fitted, made
from sim.spec import RunSpec, per_layer
from sim.sweeps.config import Configuration
from traces.errors import UserError

AHEAD = 1_000  # runs that are looked through for one that need not wait


class Versions:
    """What is there, and what somebody compiles now."""

    def __init__(self) -> None:
        self._memo = Kept(0)
        self._of: dict[str, Hashable] = {}
        self._there: set[Hashable] = {None}
        self._begun: set[Hashable] = set()

    def of(self, run: Configuration) -> Hashable:
        """Equal for runs that are surely of one version; None of one that cannot be run."""
        if run.id not in self._of:
            self._of[run.id] = None if run.spec is None else _version(run.spec, self._memo)
        return self._of[run.id]

    def there(self, run: Configuration) -> bool:
        """Whether it can be run at once."""
        return self.of(run) in self._there

    def next(self, runs: Iterable[Configuration]) -> int | None:
        """The place of the first that can be run at once, else of one whose version nobody compiles; None: all wait."""
        near = list(islice(runs, AHEAD))
        at_once = (i for i, run in enumerate(near) if self.there(run))
        first_of_all = (i for i, run in enumerate(near) if self.of(run) not in self._begun)
        return next(at_once, next(first_of_all, None))

    def begin(self, run: Configuration) -> None:
        """Somebody runs the first of its version: what it needs is compiled there."""
        self._begun.add(self.of(run))

    def end(self, run: Configuration, done: bool) -> None:
        """It has been run; if it is not done, for its worker died, the next of its version is the first."""
        self._begun.discard(self.of(run))
        if done:
            self._there.add(self.of(run))


def to_compile(runs: Sequence[Configuration]) -> list[Configuration]:
    """A run of each version of the machine that these runs may need: what is compiled already only has to be read."""
    found: dict[Hashable, Configuration] = {}
    versions = Versions()
    for run in sorted(runs, key=_slow_to_prepare):
        if run.spec is not None and run.spec.machine == "compiled":
            found.setdefault(versions.of(run), run)
    return list(found.values())


def _slow_to_prepare(run: Configuration) -> tuple[int, int]:
    """Sort key: last who asks a user's own function, before them who fits something."""
    users = 0 if run.spec is None else len(_users(run.spec))
    return users, 0 if run.spec is None or users else len(fitted(run.spec))


def _users(spec: RunSpec) -> list[str]:
    """The policies that are a user's own."""
    return [name for kind in KINDS if is_user(name := getattr(spec, kind))]


def _version(spec: RunSpec, memo: Memo) -> Hashable:
    """What decides (sim.core.inputs, sim.on_miss): whether there are rules on a miss, else what it has parts for; and
    what may bring rules, which slots and sizes alone tell. A spec that is wrong needs nothing: its run says so."""
    if users := _users(spec):
        return (spec.machine, *users)
    try:
        marks = find("eviction", spec.eviction).choice(spec.params("eviction")).marks
        by_token = find("miss", spec.miss).kind not in BY_RULE
        everything = by_token or spec.rerank != "none" or bool(marks & (TOLD_MORE | BY_WORTH))
        if marks & KEEPS_OUT or _by_rules(spec, memo):
            return spec.machine, "rules", everything
    except UserError:
        return None
    asks = (spec.miss, spec.rerank) != ("fetch", "none")  # and then with everything
    parts = asks or (spec.prefetch != "none", bool(marks & TOLD_MORE))
    layers = (spec.n_cpu_moe, spec.override_tensor, spec.cache if spec.cache == FIT else per_layer(spec.cache))
    slots = (spec.engine, spec.vram, *layers) if any(each is not None for each in layers) else None
    ruled = (slots, spec.transfer_chunk, everything) if slots or spec.transfer_chunk else None
    return spec.machine, parts, ruled


def _by_rules(spec: RunSpec, memo: Memo) -> bool:
    """Whether what it asks for on a miss is beyond one rule for every visit."""
    if spec.bulk != "none" or spec.defer > 0 or not spec.beside or find("miss", spec.miss).kind in OWN:
        return True
    hardware, engine = (made(Described.of(spec, kind), memo) for kind in ("hardware", "engine"))
    return slowed(Rules.of(spec), hardware, engine)
