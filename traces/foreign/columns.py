"""Which name in a home-made log is which of our fields: as `--columns` says, else by the names that public logs use.

Names compare without case, spaces, underscores and hyphens: `Layer ID` is `layer_id`.
"""

import re
from collections.abc import Iterable, Mapping

from traces.errors import TraceError
from traces.slips import did_you_mean

# field of ours -> names that it has elsewhere; the first is the one that docs/formats.md uses
ALIASES = {
    "token": "token token_idx token_index token_pos token_position token_num token_number tok tok_idx tok_pos pos"
    " position position_id step",
    "layer": "layer layer_id layer_idx layer_index layer_num layer_number layer_no moe_layer moe_layer_id moe_layer_idx"
    " moe_layer_index block block_id block_idx blk il",
    "experts": "experts expert expert_id expert_ids expert_idx expert_index expert_indices topk_ids topk_idx"
    " topk_indices topk_expert topk_experts topk_expert_ids top_experts top_indices indices selected_expert"
    " selected_experts selected_expert_id selected_expert_ids active_experts active_expert_ids activated_expert"
    " activated_experts activated_expert_id activated_expert_ids chosen_experts routed_experts routed_expert_ids",
    "weights": "weights weight topk_weights topk_weight router_weights router_weight routing_weights routing_weight"
    " expert_weights expert_weight gate_weights gate_weight gating_weights gate_scores router_scores routing_scores"
    " topk_scores expert_scores scores score probs prob probabilities probability topk_probs topk_prob expert_probs"
    " router_probs routing_probs selected_probs selected_probabilities",
    "sequence": "sequence sequence_id sequence_idx seq seq_id seq_idx request request_id request_idx req req_id req_idx"
    " rid prompt_id prompt_idx prompt_index sample sample_id sample_idx conversation_id conv_id session_id doc_id"
    " batch_number batch_id batch_idx",
    "rank": "rank slot slot_id slot_idx k k_idx k_index topk_rank expert_rank",
    "phase": "phase stage mode",
    "prefill": "prefill is_prefill is_prompt",
    "token_id": "token_id token_ids input_id input_ids vocab_id",
    "text": "token_text token_str token_string text piece",
    "count": "count counts uses use_count hits hit_count freq frequency frequencies tokens n_tokens num_tokens"
    " token_count activations activation_count selections selection_count occurrences times",
}
TRACED = tuple(name for name in ALIASES if name != "count")


def normal(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


KNOWN = {field: frozenset(map(normal, names.split())) for field, names in ALIASES.items()}
# Of a row: a file that has one of these has rows of a log; without any it could be a model's outputs (formats.hf).
OF_A_ROW = frozenset.union(*(KNOWN[field] for field in ("token", "sequence", "phase", "prefill")))
OURS = {alias: field for field, names in KNOWN.items() for alias in names}


def find(
    names: Iterable[str], columns: Mapping[str, str] | None, where: str, fields: Iterable[str] = TRACED
) -> dict[str, str]:
    """field -> the name that it has among `names`, for every field that has one.

    columns: what `--columns` says, which goes before. Raises TraceError that begins with `where` for a column of
    `--columns` that is not there or that two fields have, and for two names that could both be one field.
    """
    there, wanted = list(dict.fromkeys(names)), tuple(fields)
    said = {_field(ours, wanted): _named(ours, theirs, there, where) for ours, theirs in (columns or {}).items()}
    twice = next((theirs for theirs in said.values() if list(said.values()).count(theirs) > 1), None)
    if twice is not None:
        which = " and ".join(field for field, theirs in said.items() if theirs == twice)
        raise TraceError(f"{where}: --columns says that {twice} is {which}; a column is one field")
    for field in wanted:
        if field in said:
            continue
        found = [name for name in there if normal(name) in KNOWN[field] and name not in said.values()]
        if len(found) > 1:
            which = " or ".join(f"{field}={name}" for name in found)
            raise TraceError(f"{where}: {' and '.join(found)} could each be the {field}; required: --columns {which}")
        if found:
            said[field] = found[0]
    return said


def _field(ours: str, wanted: tuple[str, ...]) -> str:
    field = ours if ours in wanted else OURS.get(normal(ours), "")
    if field not in wanted:
        right = f"one of {', '.join(wanted)} is required{did_you_mean(ours, wanted)}"
        raise TraceError(f"--columns {ours[:40]}=: no such field; {right}")
    return field


def _named(ours: str, theirs: str, there: list[str], where: str) -> str:
    same = [name for name in there if name == theirs] or [name for name in there if normal(name) == normal(theirs)]
    if len(same) != 1:
        raise TraceError(f"{where}: --columns {ours}={theirs[:40]}: no such name; there are {listed(there)}")
    return same[0]


def numbered(names: Iterable[str], *words: str) -> list[str]:
    """Names that are one of `words` and a number (e0, expert_1, Expert 2), by number; none where a number is missing.

    The empty word stands for a bare number.
    """
    found: dict[int, str] = {}
    for name in names:
        match = re.fullmatch(r"([a-z]*?)([0-9]{1,5})", normal(name), re.ASCII)
        if match and match[1] in words and found.setdefault(int(match[2]), name) != name:
            return []
    first = min(found, default=0)
    regular = first in (0, 1) and sorted(found) == list(range(first, first + len(found)))
    return [found[number] for number in sorted(found)] if regular else []


def listed(names: Iterable[str]) -> str:
    """Names of a file, for a message."""
    text = ", ".join(ascii(name)[1:-1] for name in names) or "none"
    return text if len(text) <= 200 else text[:197] + "..."
