"""What a file says of its model before its routing, in whatever words: experts, top-k, layers.

It goes before what the flags and the catalog say; where they differ, that is said.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from traces.foreign.ask import Ask
from traces.foreign.columns import normal
from traces.foreign.json_lines import integer
from traces.format.layout import MAX_EXPERTS
from traces.format.limits import MOST_LAYERS

NAMES = {
    "n_experts": "n_experts num_experts n_expert n_routed_experts num_routed_experts num_local_experts"
    " experts_per_layer",
    "top_k": "top_k n_expert_used n_experts_used num_experts_per_tok num_experts_per_token experts_per_token"
    " assigned_experts_per_token",
    "n_layers": "n_layers num_layers n_layer num_hidden_layers",
}  # fmt: skip
MOST = {"n_experts": MAX_EXPERTS, "top_k": MAX_EXPERTS, "n_layers": MOST_LAYERS}
WORDS = {"n_experts": "experts a layer", "top_k": "experts a token", "n_layers": "layers"}


def facts(said: Mapping[str, Any], where: str) -> dict[str, int]:
    """n_experts, top_k and n_layers of an object that has them by any name. Raises TraceError for one that is none."""
    keys = {normal(key): key for key in said}
    found: dict[str, int] = {}
    for fact, names in NAMES.items():
        for key in (keys[name] for name in map(normal, names.split()) if name in keys):
            if said[key] is not None:
                found[fact] = integer(said[key], key[:40], where, 1, MOST[fact])
    return found


def told(path: Path, ask: Ask, said: Mapping[str, Any], where: str) -> tuple[Ask, list[str]]:
    """(the flags with what the file says of its model, a line for each fact that the model's name says otherwise)."""
    found, model = facts(said, where), ask.model
    doubts = [
        f"the file says {value} {WORDS[fact]}, {model.name} has {getattr(model, fact)}: the file's number is kept"
        for fact, value in found.items()
        if getattr(model, fact) not in (None, value)
    ]
    changed: dict[str, Any] = dict(found)
    if model.moe_layers and model.moe_layers[-1] >= found.get("n_layers", MOST_LAYERS):
        changed["moe_layers"] = None
    return replace(ask, model=replace(model, **changed)), doubts
