"""The settings of one engine: what its users may choose (`options` of its entry in the catalog), with the values worth
trying, each at what fits the card. Nothing here knows an engine by name.

A setting is a candidate (sim.search.space): a choice for every knob that matters. Two of its knobs are not fields of a
run by themselves: `layers`, which end of the model is on the GPU, and `bulk_rows` = `none`, the rule of many rows off.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.catalog.engine_spec import ANY, LAYERS, Engine
from sim.engines import KNOBS, same_parameter
from sim.policies.kinds import BULK
from sim.policies.policy import NONE
from sim.policies.registry import TABLES
from sim.prepare import Setting
from sim.search.space import POLICIES, QUEUE, Candidate, Space, Values, fields_of, name_of
from sim.spec import WITHOUT_SLOTS, defaults

OTHER = {"first": "last", "last": "first"}  # end of the model
CHUNKS = (512, 1024, 2048)  # of a prompt: the ubatch of llama.cpp's users
WORTH: Mapping[str, Values] = {
    "bulk_rows": ("8", "32", "128", "512", "2048"),
    "ahead": (1, 2, 4),
    "defer": (0, 1, 2),
    "dense_on_host": (None, WITHOUT_SLOTS),
    "prefetch_budget": QUEUE["prefetch_budget"],
}  # where every value may be chosen
OFF = "none"  # of the rule of many rows
LOSSY = ("defer",)  # of these all but the plainest


@dataclass(frozen=True)
class EngineSpace(Space):
    """As a Space, of one engine. own: the parameters that it sets; left_out: why a value that the engine has is not
    tried, and how often."""

    own: Mapping[str, Any]
    left_out: Mapping[str, int]

    @staticmethod
    def within(engine: Engine, setting: Setting, fixed: Mapping[str, Any], lossy: bool) -> "EngineSpace":
        """setting: the trace and the machine, whatever the policies; fixed: fields that are as given; lossy: something
        may be."""
        have = _Have(engine, setting, lossy, Counter())
        fields = [name for name in defaults() if name in engine.options and name not in (*KNOBS, "set", *fixed)]
        tried = {name: have.values(name, engine.options[name]) for name in fields}
        chosen = {
            name: (fixed.get(name, engine.sets.get(name, defaults()[name])),) for name in (*POLICIES, "cache_scope")
        }
        knobs = {**chosen, **{name: values for name, values in tried.items() if name != "prefetch_budget"}}
        bulk = knobs.pop("bulk", (fixed.get("bulk", engine.sets.get("bulk", OFF)),))
        rows = knobs.pop("bulk_rows", (fixed.get("bulk_rows", engine.sets.get("bulk_rows")),))
        if bulk[0] != OFF:
            knobs["bulk_rows"] = (*rows, *((OFF,) if OFF in bulk and "bulk_rows" not in fixed else ()))
        knobs |= have.chunks(fixed) | ({} if any(name in fixed for name in KNOBS) else have.ends())
        parameters = {kind: {name: have.parameters(kind, name) for name in knobs[kind]} for kind in POLICIES}
        queue = {"prefetch_budget": tried["prefetch_budget"]} if "prefetch_budget" in tried else {}
        return EngineSpace(knobs, queue, {}, parameters, engine.sets.get("set", {}), dict(have.left_out))

    def fields(self, candidate: Candidate) -> dict[str, Any]:
        """The setting as fields of a RunSpec, but for `layers`; of parameters those that the engine does not set so."""
        asked = {knob: value for knob, value in candidate.items() if knob != "layers" and self.own.get(knob) != value}
        fields = fields_of(asked)
        if fields.get("bulk_rows") == OFF:
            del fields["bulk_rows"]
            fields["bulk"] = OFF
        return fields

    def every(self, most: int) -> list[Candidate]:
        """Every setting, at most so many: the engine's own first, then what differs from it in ever more knobs."""
        first = self.whole({knob: values[0] for knob, values in self.knobs.items()})
        found, at = {name_of(first): first}, 0
        while at < len(found) < most:
            for near in self.neighbours(list(found.values())[at]):
                found.setdefault(name_of(near), near)
            at += 1
        return list(found.values())[:most]


@dataclass(frozen=True)
class _Have:
    """What an engine's options come to on a trace and a machine."""

    engine: Engine
    setting: Setting
    lossy: bool
    left_out: Counter[str]

    def values(self, name: str, option: Any) -> Values:
        """The engine's own value first; of all that is allowed what this trace and machine have what it takes."""
        own = self.engine.sets.get(name, defaults()[name])
        more = WORTH.get(name, ()) if option == ANY else tuple(option)
        every = dict.fromkeys((own, *more))
        whys = {value: self._why_not(name, value) for value in every if not self._as_good_as_off(name, value, own)}
        kept = tuple(value for value, why in whys.items() if why is None)
        for value, why in whys.items():
            if why is not None and (kept or value != own):  # else it is tried, and its run says so
                self.left_out[f"{name} {value}: {why}"] += 1
        return kept or (own,)

    def _as_good_as_off(self, name: str, value: Any, own: Any) -> bool:
        return name == "bulk_rows" and value != own and int(value) > self._largest_step

    def _why_not(self, name: str, value: Any) -> str | None:
        if name in LOSSY and value != defaults()[name]:
            why = "needs `weights`" if not self.setting.trace.has("weights") else None
            return why if self.lossy else "is lossy, and --max-lossy-weight is 0"
        return self._lacks(name, value) if name in TABLES else None

    def _lacks(self, kind: str, name: str) -> str | None:
        if name == NONE.name:
            return None
        policy, trace = TABLES[kind][name], self.setting.trace
        missing = [array for array in policy.needs if not trace.has(array)]
        if missing:
            return f"needs `{missing[0]}`, which the trace does not have"
        if policy.fitted and self.setting.calibration is None:
            return "is fitted, and nothing is set aside"
        if policy.may_answer_cpu({}) and not self.setting.hardware.answers_cpu:
            return "needs hardware with times of the host"
        if name == "random":
            return "is a matter of luck"
        return "is lossy, and --max-lossy-weight is 0" if policy.lossy and not self.lossy else None

    @property
    def _longest_prompt(self) -> int:
        trace = self.setting.trace
        prompts = trace.prefill & (not self.setting.spec.as_decode)
        return int(np.bincount(trace.sequence[prompts]).max()) if prompts.any() else 0

    @property
    def _largest_step(self) -> int:
        return max(self._longest_prompt, self.setting.spec.batch)

    def chunks(self, fixed: Mapping[str, Any]) -> dict[str, Values]:
        """Sizes of a prefill step, where the engine says its own: one for each that makes other steps."""
        own = self.engine.sets.get("prefill_chunk")
        if own is None or "prefill_chunk" in fixed:
            return {}
        longest, steps = self._longest_prompt, dict[int, Any]()
        for chunk in (own, *CHUNKS):
            steps.setdefault(min(chunk, longest), chunk)
        return {"prefill_chunk": tuple(steps.values())}

    def ends(self) -> dict[str, Values]:
        """Which end of the model is on the GPU, as many layers as fit: its fit's, or the other one where its users can
        say so."""
        option = self.engine.options.get("cache", [])
        other = self.engine.knob in OTHER and (option == LAYERS or moved_by_number(self.engine))
        return {"layers": (self.engine.knob, OTHER[self.engine.knob])} if other else {}

    def parameters(self, kind: str, name: str) -> dict[str, Values]:
        """Of a policy, what its users may set of it: the engine's own value first."""
        option, own = self.engine.options.get("set", []), self.engine.sets.get("set", {})
        policy, out = TABLES[kind].get(name, NONE), {}
        for parameter, values in (policy.search or {}).items():
            key = f"{name}.{parameter}"
            if option == ANY or any(same_parameter(key, other) for other in option):
                mine = [value for other, value in own.items() if same_parameter(key, other)]
                out[parameter] = tuple(dict.fromkeys((*mine, *values)))
        return out


def moved_by_number(engine: Engine) -> bool:
    """Whether the engine's --n-cpu-moe leaves the other end of the model on the GPU than its fit does."""
    return engine.options.get("n_cpu_moe") == ANY and engine.cpu_moe == engine.knob


def may_lose(engine: Engine, given: Mapping[str, Any]) -> bool:
    """Whether anything of the engine that may be chosen, or is given, is lossy."""
    for name in (*TABLES, BULK, *LOSSY):
        option = engine.options.get(name, [])
        values = WORTH.get(name, ()) if option == ANY else tuple(option)
        if any(_is_lossy(name, value) for value in (*values, given.get(name, defaults().get(name)))):
            return True
    return False


def _is_lossy(name: str, value: Any) -> bool:
    if name in LOSSY:
        return bool(value != defaults()[name])
    policy = TABLES["miss" if name == BULK else name].get(value)
    return policy is not None and policy.lossy
