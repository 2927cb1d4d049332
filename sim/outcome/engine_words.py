"""What an engine did of a run and what its user chose, in words."""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.capacity import vram_bytes
from sim.engines import FIT
from sim.flags import flag_words
from sim.spec import defaults

if TYPE_CHECKING:
    from sim.prepare import Setting

ALWAYS_SAID = ("miss", "eviction")  # the others where they are not a run's own default
WHOLE_PROMPT = 1_000_000  # rows of a step: no prompt has more
TOLD_BY_RESIDENTS = ("cache", "cache_scope", "n_cpu_moe", "override_tensor", "dense_on_host")


def engine_told(setting: "Setting") -> dict[str, Any] | None:
    """The summary's `engine`: its name and version, which fields it set, which its user set otherwise, what of the
    experts is where, and all of it in a sentence. None of an engine that is costs alone."""
    spec, engine = setting.spec, setting.spec.behaves
    if engine is None:
        return None
    who = spec.who_set
    n, layers = setting.plan.n_experts, setting.plan.experts.shape[1]
    out = {
        "name": engine.name,
        "version": engine.version,
        "sets": who["engine"],
        "you_set": who["you"],
        "residents": residents(setting.plan.slots, layers, n, setting.plan.pooled),
        "chosen_by_fit": spec.cache == FIT,
    }
    where = f"{out['residents']}{_dense_there(setting)}{f' (as fits {_card(setting)})' if spec.cache == FIT else ''}"
    return out | _rates(setting) | {"words": _words(out, where, spec.bulk_rows)}


def _rates(setting: "Setting") -> dict[str, float | None]:
    """GB/s of the machine: its link for page-locked copies of one expert, and what the host reads alone."""
    link, host = setting.hardware.link, setting.hardware.host
    return {
        "link_gb_per_s": None if link is None else link.rate(setting.plan.expert_bytes),
        "host_gb_per_s": None if host is None else host.read_rate(),
    }


def residents(slots: npt.NDArray[np.int64], layers: int, n_experts: int, pooled: bool) -> str:
    """Where the experts of the MoE layers are, as an engine's users say it. slots: int64 [scopes]."""
    full, none = slots == n_experts, slots == 0
    if pooled:
        every = layers * n_experts
        return f"a pool of {int(slots[0]):,} of {every:,} experts" if slots[0] < every else "all experts on the GPU"
    if full.all() or none.all():
        return "all experts on the GPU" if full.all() else "no experts on the GPU"
    if (full | none).all():
        return f"{_which(none)} on the CPU"
    least, most = int(slots.min()), int(slots.max())
    return f"{least if least == most else f'{least} to {most}'} of {n_experts} experts of each MoE layer on the GPU"


def _which(layers: npt.NDArray[np.bool_]) -> str:
    """Some MoE layers: `first 3 of 32 MoE layers`, `10 of 32 MoE layers (10-19)`."""
    n, every = int(layers.sum()), f"{len(layers)} MoE layers"
    if layers[:n].all() or layers[-n:].all():
        return f"{'first' if layers[:n].all() else 'last'} {n} of {every}"
    runs = np.split(at := np.flatnonzero(layers), np.flatnonzero(np.diff(at) > 1) + 1)
    return f"{n} of {every} ({', '.join(f'{r[0]}-{r[-1]}' if len(r) > 1 else str(r[0]) for r in runs)})"


def _dense_there(setting: "Setting") -> str:
    """Of which layers the dense part is on the CPU, beside where experts are."""
    on_host = np.isin(setting.trace.meta["moe_layers"], setting.costed.on_host)
    if not on_host.any():
        return ""
    same = not setting.plan.pooled and bool((on_host == (setting.plan.slots == 0)).all())
    return ", dense parts too" if same else f", dense parts of the {_which(on_host)} on the CPU"


def _card(setting: "Setting") -> str:
    """How much of a card is filled."""
    vram, share = vram_bytes(setting.spec, setting.hardware) or 0, setting.engine.memory_share
    return f"{'' if share == 1 else f'{share:g} of '}{vram / 1e9:.2f} GB"


def _words(out: Mapping[str, Any], where: str, bulk_rows: str | None) -> str:
    """`llama.cpp b9000: first 16 of 32 MoE layers on the CPU, miss cpu, ...; you set --n-cpu-moe 16`."""
    plain = {name: default for name, default in defaults().items() if name not in ALWAYS_SAID}
    shown = {name: value for name, value in out["sets"].items() if (name, value) not in plain.items()}
    sets = [_said(name, value) for name, value in _order(shown, bulk_rows) if name not in TOLD_BY_RESIDENTS]
    yours = shlex.join(flag_words(out["you_set"]))
    name = f"{out['name']} {out['version']}".strip()
    return f"{name}: {', '.join([where, *sets])}" + (f"; you set {yours}" if yours else "")


def _order(sets: Mapping[str, Any], bulk_rows: str | None) -> list[tuple[str, Any]]:
    """The rules of misses first, that of many rows with the number that it holds from."""
    shown = {name: value for name, value in sets.items() if name != "bulk_rows"}
    if "bulk" in shown and bulk_rows is not None:
        shown["bulk"] = f"{shown['bulk']} at {_rows(bulk_rows)}"
    first = [name for name in ("miss", "bulk") if name in shown]
    return [(name, shown[name]) for name in [*first, *(name for name in shown if name not in first)]]


def _rows(text: str) -> str:
    return f"rows x top-k = {text[:-1]} x experts" if text.endswith("E") else f"{text} rows"


def _said(name: str, value: Any) -> str:
    if name == "prefill_chunk":
        return "prompts in one step" if value >= WHOLE_PROMPT else f"prompts in steps of {value:,} rows"
    word = name.removeprefix("set.").replace("_", " ") if not name.startswith("set.") else name.removeprefix("set.")
    return word if value is True else f"{word} no" if value is False else f"{word} {value}"
