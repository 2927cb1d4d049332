"""What the command line may tell a reader: what a source does not say is asked for here by flag, or left out."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.errors import TraceError
from traces.foreign.models import Model
from traces.format.layout import MAX_EXPERTS, Array

PHASES = ("prefill", "decode", "by-batch")
# what a source may leave open
ASKED = ("phase", "prompt_tokens", "prompt_start", "requests", "verify", "iteration", "interleave", "columns", "values")
VALUES = ("logits", "probabilities")
REQUESTS = ("one", "step", "prompt")  # or a number of tokens


@dataclass(frozen=True)
class Ask:
    """Flags of `convert`. None: not given.

    model: facts of the model. real: false for a log of a synthetic run. phase: prefill, decode (all rows), by-batch
    (rows that ran together with others are prompt rows). prompt_tokens: rows at positions below it are prompt rows.
    prompt_start: position of the first row. requests: one, step (each pass a request), prompt (a request begins where
    a prompt pass follows a generated one), or so many tokens each. verify: passes of at most so many tokens, but for
    the first, verify drafts: their rows are generated ones (by-batch alone). iteration: which checkpoint of several.
    interleave: so many sequences lie side by side, row by row. columns: a field of ours -> what the source calls it.
    values: logits or probabilities, of numbers over all experts.
    scratch: folder for temporary files. meta: further keys (source, licence).
    """

    model: Model
    real: bool = True
    phase: str | None = None
    prompt_tokens: int | None = None
    prompt_start: int | None = None
    requests: str | None = None
    verify: int | None = None
    iteration: int | None = None
    interleave: int | None = None
    columns: dict[str, str] | None = None
    values: str | None = None
    scratch: Path | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)  # names of the flags that were asked for

    def __post_init__(self) -> None:
        if self.phase is not None and self.phase not in PHASES:
            raise TraceError(f"--phase {self.phase[:40]!r}: one of {', '.join(PHASES)} is required")
        if self.requests is not None and self.requests not in REQUESTS and not self.tokens_each:
            raise TraceError(f"--requests {self.requests[:40]!r}: {', '.join(REQUESTS)} or tokens each is required")
        if self.phase is not None and self.prompt_tokens is not None:
            raise TraceError("--phase and --prompt-tokens: one of the two is required, not both")
        if self.verify is not None and self.phase != "by-batch":
            raise TraceError("--verify: says which passes are no prompts; needs --phase by-batch")
        if self.verify is not None and not 2 <= self.verify < 2**20:
            raise TraceError(f"--verify {self.verify}: a number from 2 to {2**20 - 1} is required")
        if self.requests == "prompt" and self.phase != "by-batch":
            raise TraceError("--requests prompt: needs --phase by-batch, which says which passes are prompts")
        for flag, value in (("--prompt-tokens", self.prompt_tokens), ("--prompt-start", self.prompt_start)):
            if value is not None and not 0 <= value < 2**31:
                raise TraceError(f"{flag} {value}: a number from 0 to {2**31 - 1} is required")
        if self.interleave is not None and not 1 <= self.interleave < 2**20:
            raise TraceError(f"--interleave {self.interleave}: a number from 1 to {2**20 - 1} is required")
        if self.interleave is not None and self.requests in ("one", "prompt"):
            raise TraceError(f"--interleave: needs --requests step or tokens each, not {self.requests}")
        if self.values is not None and self.values not in VALUES:
            raise TraceError(f"--values {self.values[:40]!r}: one of {', '.join(VALUES)} is required")

    def asked(self, flag: str) -> Any:
        """What one of ASKED says, None where it was not given; the flag counts as used."""
        self.used.add(flag)
        return getattr(self, flag)

    def unused(self) -> list[str]:
        """Flags that were given and that the source left no question for."""
        return [flag for flag in ASKED if getattr(self, flag) is not None and flag not in self.used]

    @property
    def tokens_each(self) -> int:
        """Tokens of a request by --requests N, else 0."""
        found = re.fullmatch("[0-9]{1,9}", self.requests or "", re.ASCII)
        return int(found[0]) if found else 0

    @property
    def said_requests(self) -> str:
        """How requests were told apart, for meta."""
        return f"--requests {self.requests}" + (f" --interleave {self.interleave}" if self.interleave else "")

    def places(self, row: Array) -> tuple[Array, Array]:
        """(sequence, position) of rows [n] by their place in the source, with --requests N and --interleave M: every
        N x M rows hold M requests of N tokens, of which row r is request r % M at position r // M. What is left after
        the last whole block lies likewise: so many shorter requests."""
        side = self.asked("interleave") or 1
        block, within = np.divmod(row, self.tokens_each * side)
        return block * side + within % side, within // side

    def n_experts(self, path: Path) -> int:
        value = self._known(path, "n_experts", "how many experts a layer has", "--n-experts N")
        if not 1 <= value <= MAX_EXPERTS:
            raise TraceError(f"{path}: n_experts = {value}; an integer from 1 to {MAX_EXPERTS} is required")
        return value

    def top_k(self, path: Path) -> int:
        value = self._known(path, "top_k", "how many experts a token has", "--top-k N")
        if not 1 <= value <= self.n_experts(path):
            raise TraceError(f"{path}: top_k = {value}; an integer from 1 to {self.n_experts(path)} is required")
        return value

    def n_layers(self, path: Path) -> int:
        return self._known(path, "n_layers", "how many layers the model has", "--n-layers N")

    def moe_layers(self, path: Path) -> tuple[int, ...]:
        if self.model.moe_layers is None:
            raise self._missing(path, "which layers are MoE layers", "--moe-layers LIST (such as 1-26)")
        return self.model.moe_layers

    def _known(self, path: Path, key: str, what: str, flag: str) -> int:
        value = getattr(self.model, key)
        if value is None:
            raise self._missing(path, what, flag)
        return int(value)

    def _missing(self, path: Path, what: str, flag: str) -> TraceError:
        name = self.model.name[:60]
        return TraceError(
            f"{path}: the file does not say {what}, nor does the name {name!r}{self.model.hint}; required: {flag}"
        )

    def prefill(self, path: Path, position: Array, together: int = 0, prompt: int | None = None) -> Array:
        """bool [n] of rows at `position` [n] of a source that does not say its phases.

        together: tokens of the pass they ran in, for by-batch; 0: the source does not say that either. prompt: tokens
        of the prompt where this request says them all the same.
        """
        if prompt is not None:
            return np.asarray(position < prompt)
        self.used.update(("phase", "prompt_tokens"))
        if self.prompt_tokens is not None:
            return np.asarray(position < self.prompt_tokens)
        if self.phase is None or (self.phase == "by-batch" and not together):
            choices = "prefill|decode" + ("|by-batch" if together else "")
            wrong = "the file does not say which rows are prompt rows"
            raise TraceError(f"{path}: {wrong}; required: --phase {choices} or --prompt-tokens N")
        return np.full(len(position), self.phase == "prefill" or (self.phase == "by-batch" and together > 1))

    def described(self, path: Path, moe_layers: list[int], top_k: int, **meta: Any) -> dict[str, Any]:
        """The meta of a trace whose MoE layers and top-k are known."""
        n_layers = self.model.n_layers if self.model.n_layers is not None else moe_layers[-1] + 1
        known = {
            "format_version": 1,
            "model": self.model.name,
            "n_experts": self.n_experts(path),
            "top_k": top_k,
            "n_layers": n_layers,
            "moe_layers": moe_layers,
            "real": self.real,
        }
        return known | meta | self.meta


def parse_columns(text: str) -> dict[str, str]:
    """`token=token_pos,experts=topk_ids` by our names. Raises TraceError where it is no such list."""
    named = [part.partition("=") for part in text.split(",")]
    found = {ours.strip(): theirs.strip() for ours, _, theirs in named}
    if len(found) < len(named) or not all(ours and theirs for ours, theirs in found.items()):
        raise TraceError(f"--columns {text[:40]!r}: OURS=THEIRS,... is required, each once, such as experts=topk_ids")
    return found


def place_layers(path: Path, found: list[int], ask: Ask) -> list[int]:
    """Indices of the MoE layers whose numbers a source gives, ascending; counted from 0, or from 1 where only that
    fits what is known of the model. Raises TraceError where neither fits."""
    known = ask.model.moe_layers
    if known is None:
        if ask.model.n_layers is not None and found[-1] >= ask.model.n_layers:
            limit = ask.model.n_layers
            raise TraceError(f"{path}: layer {found[-1]}; a model of {limit} layers has layers 0 to {limit - 1}")
        return found
    for base in (0, 1):
        if tuple(layer - base for layer in found) == known:
            return list(known)
    given, want = _list(found), _list(list(known))
    raise TraceError(f"{path}: its MoE layers are {given}; {ask.model.name} has {want} (counted from 0 or from 1)")


def _list(layers: list[int]) -> str:
    text = ",".join(map(str, layers))
    return text if len(text) <= 60 else f"{text[:40]}... ({len(layers)} of them)"


class Axis(NamedTuple):
    """An axis over layers: indices of the MoE layers in the model, their places on the axis, places of dense ones."""

    layers: list[int]
    take: list[int]
    dense: list[int]


def pick_layers(path: Path, length: int, ask: Ask, what: str) -> Axis:
    """An axis of that length, which `what` has: over the MoE layers, or over all layers with places for dense ones.

    Raises TraceError where it is neither.
    """
    layers = list(ask.moe_layers(path))
    if length == len(layers):
        return Axis(layers, list(range(length)), [])
    n_layers = ask.model.n_layers
    if length == (n_layers or length) and layers[-1] < length:
        return Axis(layers, layers, sorted(set(range(length)) - set(layers)))
    all_layers = f"{n_layers} layers, " if n_layers is not None else ""
    raise TraceError(f"{path}: {what} has {length} layers; {ask.model.name} has {all_layers}{len(layers)} MoE layers")
