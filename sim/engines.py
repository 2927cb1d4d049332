"""What the name of an engine means to a run: the fields that it sets, those that its users may set, what it refuses.

An engine's entry in the catalog says it (`sim.catalog.engine_spec.Behaviour`); nothing here knows an engine by name.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from sim import catalog
from sim.catalog.engine_spec import ANY, LAYERS, SLOTS, Engine
from sim.errors import CatalogError, SpecError, unknown

FIT = "fit"  # of --cache: as much as the card holds
KNOBS = (
    "cache",
    "n_cpu_moe",
    "override_tensor",
)  # who says what is resident: one of them, cache being None where another does
# what anybody may choose with any engine: the work, the machine, how long and by what; everything else is the engine's
FREE = (
    "trace", "model", "hardware", "host", "host_gbps", "link_gbps", "ram", "engine", "engine_as_costs", "precision",
    "kv_precision", "vram", "context", "calibration", "link_share", "cpu_visit_us", "batch", "prefill_chunk",
    "as_decode", "speculate", "accept", "draft_ns", "context_offset", "warmup_steps", "max_steps", "seed", "machine",
    "set", "reset", "requests", "warmup_share", "skip_prompts",
)  # fmt: skip
COSTS = ("cpu_visit_us",)  # free, and instead of what the engine costs
OF_BULK = ("bulk_rows", "bulk_touch")  # of no use without a rule for many rows
NEVER_FETCH = ("cpu", "cpu-admit", "remote")  # rules: sim.on_miss.NEVER_FETCH by name; any other streams beside static
OF_STREAMS = ("stages", "serial", "merge", "whole_layer", "ahead")  # nor these where nothing streams


@cache
def _shipped(name: str) -> Engine:
    return catalog.engine(name)


def behaving(name: str) -> Engine | None:
    """The engine, if it has a behaviour; None of one that is costs alone, or is not known (who opens it says so)."""
    try:
        engine = _shipped(name) if name in catalog.written("engine") else catalog.engine(name)
    except CatalogError:
        return None
    return engine if engine.sets or engine.options else None


def set_by_engine(
    given: Mapping[str, Any], defaults: Mapping[str, Any], by_layer: Callable[[Any], str | None]
) -> dict[str, Any]:
    """The fields that a run gets from its engine, and from --vram, beside those that it was given; their parameters
    (`set`) together with the given ones. defaults: of every field of a run; by_layer: not None of a --cache that says
    whole layers.

    Raises SpecError, one line, for what is given and the engine cannot do, and for an engine that sets what no run has.
    """
    engine = behaving(str(given.get("engine", defaults["engine"]))) if not given.get("engine_as_costs") else None
    if engine is None:
        return _cache(given, {}, defaults)
    _refuse_unknown(engine, defaults)
    sets = engine.sets
    if any(given.get(name) is not None for name in (*KNOBS, "vram")):  # who is resident is said otherwise
        sets = {name: value for name, value in sets.items() if name not in KNOBS[1:]}
    out = {name: value for name, value in sets.items() if name not in (*given, "set")} | _cache(given, sets, defaults)
    idle = _idle({**defaults, **out, **given})
    for name, value in given.items():
        free = name in FREE or (value == defaults[name] and name in idle) or (name == "cache" and value is None)
        if not free and not _can(engine, name, value, defaults, by_layer):
            raise SpecError(_refusal(engine, name, value, defaults))
    return {name: value for name, value in out.items() if name not in idle} | _parameters(engine, given, out, defaults)


def _cache(given: Mapping[str, Any], sets: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`cache` where it is not given: none where another field says what is resident, what fits where there is a --vram,
    else the engine's or the default."""
    if given.get("cache") is not None:
        return {}
    if any({**sets, **given}.get(name) is not None for name in KNOBS[1:]):
        return {"cache": None}
    found = FIT if given.get("vram") is not None else sets.get("cache", defaults["cache"])
    return {"cache": found} if found != defaults["cache"] or "cache" in given else {}


def _refuse_unknown(engine: Engine, defaults: Mapping[str, Any]) -> None:
    for where in ("sets", "options"):
        for name in getattr(engine, where):
            if name not in defaults:
                raise unknown(f"engine {engine.name}: {where}", name, defaults)
            if name in FREE and name not in ("set", "prefill_chunk"):
                raise SpecError(f"engine {engine.name}: {where}.{name}: is no behaviour of an engine; leave it out")


def _can(
    engine: Engine, name: str, value: Any, defaults: Mapping[str, Any], by_layer: Callable[[Any], str | None]
) -> bool:
    option, own = engine.options.get(name, []), _own(engine, name, defaults)
    if option in (LAYERS, SLOTS):
        return value in (own, FIT) or (by_layer(value) is not None) == (option == LAYERS)
    return option == ANY or value in (own, *option) or (name == "expert_group" and value is None)


def _own(engine: Engine, name: str, defaults: Mapping[str, Any]) -> Any:
    return engine.expert_group if name == "expert_group" else engine.sets.get(name, defaults[name])


def _refusal(engine: Engine, name: str, value: Any, defaults: Mapping[str, Any]) -> str:
    """One line: what the engine does there, and what may be asked of it."""
    option, own = engine.options.get(name, []), _said(_own(engine, name, defaults))
    word = name.replace("_", "-")
    if name in KNOBS[1:]:
        does = f"has no --{word}"
    elif option in (LAYERS, SLOTS):
        may = "layers:N, layers:first:N or a file of whole layers" if option == LAYERS else "slots, a share or bytes"
        does = f"holds {'whole layers' if option == LAYERS else 'slots'}: {word} must be {FIT}, {may}"
    else:
        does = f"has {word} {own}" + "".join(f", or {_said(each)}" for each in option) + ", and nothing else"
    return f"{name}: {_said(value)}: {engine.name} {does}; leave it out, or give --engine-as-costs for its costs alone"


def _said(value: Any) -> str:
    """As it is written on a command line."""
    return ("no", "yes")[value] if isinstance(value, bool) else "none" if value is None else str(value)


def _idle(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that are of no use to a run: of rules that it does not have. fields: all of them."""
    rules = {fields["bulk"], fields["miss"]}
    streams = "stream" in rules or (fields["eviction"] == "static" and not rules <= {"none", *NEVER_FETCH})
    return (*(OF_BULK if fields["bulk"] == "none" else ()), *(() if streams else OF_STREAMS))


def _parameters(
    engine: Engine, given: Mapping[str, Any], out: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """`set`: the engine's parameters of the policies that this run has, and the given ones, which it may refuse."""
    own, asked, option = engine.sets.get("set", {}), given.get("set", {}), engine.options.get("set", [])
    for key, value in asked.items():
        mine = next((name for name in own if same_parameter(name, key)), None)
        if mine is not None and own[mine] != value and option != ANY and mine not in option:
            wrong = f"{engine.name} has {own[mine]}, and nothing else; leave it out, or give --engine-as-costs"
            raise SpecError(f"set: {key}={value}: {wrong} for its costs alone")
    chosen = {**defaults, **out, **given}
    names = {str(chosen[kind]) for kind in ("eviction", "prefetch", "miss", "rerank", "placement", "bulk")}
    kept = {
        key: value
        for key, value in own.items()
        if key.split(".")[-2] in names and not any(same_parameter(key, other) for other in asked)
    }
    return {"set": kept | dict(asked)} if kept else {}


def same_parameter(key: str, other: str) -> bool:
    """Whether two names are one parameter's, with and without the kind in front."""
    return key == other or key.endswith(f".{other}") or other.endswith(f".{key}")


def cache_goes_without_saying(engine: Engine | None, spec: Mapping[str, Any]) -> bool:
    """Whether another field says what is resident, or it is what fits and nobody need ask for that."""
    fits = spec["vram"] is not None or (engine is not None and engine.sets.get("cache") == FIT)
    return spec["cache"] is None or (spec["cache"] == FIT and fits)


def told(engine: Engine, spec: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Who set what of a run: `engine`: what is as the engine has it; `you`: what is otherwise, of what is an engine's
    to set. spec: every field of the run."""
    resident = cache_goes_without_saying(engine, spec)
    left_out = (*_idle(spec), "set", *(["cache"] if resident else []))
    sets = engine.sets if spec["vram"] is None else engine.sets | {"cache": FIT}
    said_otherwise = [name for name in KNOBS[1:] if spec[name] is None]  # who is resident
    sets = {name: value for name, value in sets.items() if name not in (*left_out, *said_otherwise)}
    engines = {name: value for name, value in sets.items() if spec[name] == value}
    free = {*FREE, "cache" if resident else ""} - {*COSTS}
    theirs = [name for name in defaults if name in sets or name not in free]
    yours = {name: spec[name] for name in theirs if spec[name] != sets.get(name, defaults[name])}
    parameters = engine.sets.get("set", {})
    for key, value in spec["set"].items():
        mine = next((name for name in parameters if same_parameter(name, key)), None)
        (engines if mine is not None and parameters[mine] == value else yours)[f"set.{key}"] = value
    return {"engine": engines, "you": yours}
