"""Recorder: a routing trace of a live torch model, Hugging Face's or our own.

How it works. Every Mixture-of-Experts family of transformers >= 5.0 calls `experts(hidden, ids, weights)` on a module
that holds all experts of a layer in 3-D parameters, after asking a router module beside it. So:

* a hook on the input of each experts module sees what is routed, as it is applied: ids and weights [N, K];
* a hook on each router sees its input and gives the raw logits of all experts [N, E]; the input is kept for lookahead;
* hooks around the decoder mark a forward pass: which tokens, which columns (those that the key-value cache holds come
  before), which of them are padding. At its end all goes to the host at once: the device holds one forward pass;
* `model.generate` is wrapped while the recorder is open, to learn the prompt, its mask and the end tokens, and the
  cache's `reorder_cache` is, to follow beams. `traces.capturing.batch` says what becomes of it all.

**Order of slots.** Routers return their experts in different orders, some in none. Slots are sorted here by descending
weight, equal ones by ascending id.

**Lookahead** at distance d: the router of MoE layer l asked with the very input that the router of MoE layer l - d saw.
That input has been through the norm of its own layer, not through layer l's; nothing is corrected. What the router
would choose (with its bias and groups, if it has them) is the list, top-k long, best first: what an engine could
prefetch with no more than it has at hand (arXiv 2312.17238, section 3.2, asks the next layer's gate in this way).

Compiled forwards do not call hooks: `generate` is told not to compile. Kernels that replace the whole MoE block
(`use_kernels=True`) go around them: a forward pass in which a layer was silent is refused.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from traces.capturing.batch import Batch, Columns, joined, score_function
from traces.capturing.facts import model_facts
from traces.capturing.inputs import announced, refuse_packed, tokens_seen
from traces.capturing.routers import MoeLayer, canonical, find_moe_layers, foretold, raw_logits, routed
from traces.errors import UserError
from traces.format.check import validate
from traces.format.layout import Array
from traces.format.trace import RoutingTrace

TOKENS = ("input_ids", "tokens", "inputs_embeds")  # what a decoder calls its input; `tokens` is our own
SCORED_TOKENS = 64  # tokens of the first forward pass that tell the score function
LOOKAHEAD = "router of the layer applied to the router input of an earlier layer, no norm correction"


class Recorder:
    """Records the routing of a model while it is open.

        with Recorder(model, lookahead=3) as recorder:
            model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), max_new_tokens=100)
        trace = recorder.trace(licence="...")

    logits: keep the raw logits. lookahead: distances 1 .. lookahead, 0 for none. Each `generate` is a batch of
    requests; so is, outside of it, each forward pass from an empty cache, all of it prompt, unless `begin` said
    otherwise. Raises UserError for a model that cannot be recorded.
    """

    def __init__(self, model: nn.Module, logits: bool = True, lookahead: int = 3) -> None:
        self.model, self.layers = model, find_moe_layers(model)
        self.keep_logits, self.distances = logits, lookahead
        for layer in self.layers:
            if layer.router is None and (logits or lookahead):
                raise UserError(f"{layer.name}: no router beside it; logits=False, lookahead=0 records the rest")
        self.decoder: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
        self._signature = inspect.signature(self.decoder.forward)
        self._undo: list[Callable[[], Any]] = []
        self._requests: list[dict[str, Array]] = []
        self._batch: Batch | None = None
        self._generating = False
        self._passes = 0
        self._parents: npt.NDArray[np.int64] | None = None
        self._watched: Any = None
        self._score: tuple[str, bool | None] | None = None
        self._clear()

    def __enter__(self) -> "Recorder":
        hooks = [self.decoder.register_forward_pre_hook(self._begin_pass, with_kwargs=True)]
        for layer in self.layers:
            if layer.router is not None:
                hooks.append(layer.router.register_forward_hook(self._on_router(layer)))
            hooks.append(layer.experts.register_forward_pre_hook(self._on_experts(layer), with_kwargs=True))
        hooks.append(self.decoder.register_forward_hook(self._end_pass))
        self._undo = [hook.remove for hook in hooks]
        if hasattr(self.model, "generate"):
            self._wrap_generate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for undo in self._undo:
            undo()
        self._watch(None)
        self._finish()

    def begin(self, prompt_lengths: Sequence[int] | int | None = None, attention_mask: Any = None) -> None:
        """Say that what comes next is one batch of new requests, for a loop of one's own (`generate` says it itself).

        prompt_lengths: tokens of each prompt, without padding. attention_mask [rows, prompt columns]: true where a
        token is; without it each forward pass's own mask is asked. Until the next `begin`, forward passes from an empty
        cache that grow longer are the same requests computed again.
        """
        self._finish()
        mask = None if attention_mask is None else np.asarray(torch.as_tensor(attention_mask).cpu()) != 0
        lengths = None if prompt_lengths is None else np.atleast_1d(np.asarray(prompt_lengths, np.int64))
        columns = mask.shape[1] if mask is not None and lengths is None else None
        self._batch = Batch(mask, columns, lengths, declared=True)

    def trace(self, **meta: Any) -> RoutingTrace:
        """All requests so far as a valid trace; `meta` is added to what the model tells.

        Arrays: experts, weights (float16), logits, lookahead, token_ids (unless a forward pass was given embeddings).
        Raises UserError where nothing was recorded, and for weights that are no weights.
        """
        self._finish()
        arrays = joined(self._requests)
        if "lookahead" in arrays:
            arrays["lookahead"] = np.moveaxis(arrays["lookahead"], 1, 0)
        found = RoutingTrace(meta=self._meta() | meta, **arrays)
        validate(found, f"trace of {found.model}")
        return found

    def _meta(self) -> dict[str, Any]:
        config: Any = getattr(self.model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        kind = str(getattr(config, "model_type", ""))
        name = str(getattr(config, "_name_or_path", "") or kind or type(self.model).__name__)
        meta: dict[str, Any] = {
            "format_version": 1,
            "model": re.split(r"[/\\]", name.rstrip("/\\"))[-1],
            "n_experts": self.layers[0].n_experts,
            "top_k": int(self._requests[0]["experts"].shape[2]),
            "n_layers": int(getattr(text, "num_hidden_layers", self.layers[-1].index + 1)),
            "moe_layers": [layer.index for layer in self.layers],
            "real": True,
            "slots_ordered_by_weight": True,
        }
        if self._score is not None:
            score, norm = self._score
            meta["score_function"] = "softmax-topk" if kind == "gpt_oss" else score
            meta |= {} if norm is None else {"norm_topk": norm}
        if self.distances:
            meta |= {"lookahead_distances": list(range(1, self.distances + 1)), "lookahead_source": LOOKAHEAD}
        facts = model_facts(self.model, self.layers, meta["n_layers"], meta["top_k"])
        return meta | ({"model_facts": facts} if facts else {})

    # --- one forward pass, in the order in which its hooks are called

    def _clear(self) -> None:
        self._pass: Columns | None = None
        self._ids: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._ahead: dict[tuple[int, int], Tensor] = {}
        self._inputs: dict[int, Tensor] = {}

    def _begin_pass(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._clear()
        given = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        given |= given.pop("kwargs", {})
        tokens: Any = next((given[n] for n in TOKENS if given.get(n) is not None), None)
        if tokens is None:
            raise UserError(f"{type(self.decoder).__name__}: called without input_ids or inputs_embeds")
        cache: Any = given.get("past_key_values")
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        arrays = {} if tokens.is_floating_point() else {"token_ids": tokens.cpu().numpy().astype(np.int32)}
        batch = self._open_batch(past, arrays.get("token_ids"))
        shape = int(tokens.shape[0]), int(tokens.shape[1])
        told = batch.mask is not None and past + shape[1] <= batch.mask.shape[1]
        valid = np.ones(shape, np.bool_) if told else tokens_seen(given.get("attention_mask"), past, *shape)
        if not told:
            refuse_packed(given, valid)
        self._pass = Columns(past, arrays, valid, self._parents)
        self._parents = None
        self._watch(cache)

    def _open_batch(self, past: int, tokens: Array | None) -> Batch:
        """The batch that a forward pass belongs to: a new one where an empty cache begins one unannounced."""
        batch = self._batch
        if batch is not None:
            announced = batch.declared and (not batch.held or (tokens is not None and batch.repeats(tokens)))
            if self._generating or past > 0 or announced:
                return batch
        self._finish()
        self._batch = Batch()
        return self._batch

    def _on_router(self, layer: MoeLayer) -> Callable[..., None]:
        @torch.no_grad()
        def hook(_module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if self._pass is None:
                return
            hidden = args[0].detach().reshape(-1, args[0].shape[-1])
            if self.keep_logits or self._score is None:
                self._logits.append(raw_logits(layer, hidden, out))
            for d in range(1, self.distances + 1):
                earlier = self._inputs.get(layer.place - d)
                if earlier is not None and not layer.asks_more:
                    self._ahead[d - 1, layer.place] = foretold(layer, earlier)
            self._inputs[layer.place] = hidden
            self._inputs.pop(layer.place - self.distances, None)

        return hook

    def _on_experts(self, layer: MoeLayer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._pass is None:
                return
            ids, weights = canonical(*routed(layer, [*args, *kwargs.values()]), layer.n_experts)
            self._ids.append(ids)
            self._weights.append(weights)

        return hook

    def _end_pass(self, _module: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
        new, batch = self._pass, self._batch
        assert new is not None and batch is not None
        rows, columns = new.valid.shape
        if len(self._ids) != len(self.layers) or any(len(ids) != rows * columns for ids in self._ids):
            raise UserError(
                f"{type(self.model).__name__}: a forward pass of {rows} x {columns} tokens routed "
                f"{[len(ids) for ids in self._ids]} in its {len(self.layers)} MoE layers; all in each are required"
            )
        arrays = {"experts": _host(self._ids, torch.int16), "weights": _host(self._weights, torch.float16)}
        logits = [_host(self._logits, torch.float16)] if self._logits else []
        self._passes += 1
        self._refuse_no_numbers([arrays["weights"], *logits], out, batch.tokens_of(new).ravel())
        if logits:
            if self._score is None:
                self._score = _scored(logits[0], arrays, new.valid)
            arrays |= {"logits": logits[0]} if self.keep_logits else {}
        if self.distances:
            arrays["lookahead"] = self._lists(arrays["experts"].shape)
        new.arrays |= {name: array.reshape(rows, columns, *array.shape[1:]) for name, array in arrays.items()}
        batch.add(new)
        self._clear()

    def _refuse_no_numbers(self, routers: Sequence[Array], out: Any, valid: npt.NDArray[np.bool_]) -> None:
        """Raise UserError where a token's router weights or logits [N, L, ...], or the decoder's output, that the next
        token is chosen by, are nan or infinite. valid bool [N]: padding may be anything."""
        for said in routers:
            bad = ~(said < np.inf).all(axis=2) & valid[:, None]
            if bad.any():
                place = int(np.argmax(bad.any(axis=0)))
                self._refuse_token(f"{self.layers[place].name}: its router", bad[:, place], said[:, place].max(axis=1))
        last = out[0] if isinstance(out, tuple) or hasattr(out, "last_hidden_state") else out
        if isinstance(last, Tensor) and last.shape[:-1].numel() == len(valid):
            mean = last.detach().flatten(0, -2).float().mean(dim=-1).cpu().numpy()
            bad = ~np.isfinite(mean) & valid
            if bad.any():
                self._refuse_token(f"{type(self.decoder).__name__}: its last layer", bad, mean)

    def _refuse_token(self, who: str, bad: npt.NDArray[np.bool_], said: Array) -> None:
        token = int(np.argmax(bad))
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        remedy = (
            "float16 overflows, load it in bfloat16" if dtype == "float16" else "check the weights that were loaded"
        )
        raise UserError(
            f"{who} says {said[token]} of token {token} of forward pass {self._passes}, which is no number; the model "
            f"runs in {dtype}: {remedy}"
        )

    def _lists(self, shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
        """Lookahead int16 [N, D, L, K], -1 where no earlier layer foretells."""
        out = np.full((shape[0], self.distances, *shape[1:]), -1, np.int16)
        if self._ahead:
            lists = _host(list(self._ahead.values()), torch.int16)
            for i, (distance, place) in enumerate(self._ahead):
                out[:, distance, place] = lists[:, i]
        return out

    def _finish(self) -> None:
        if self._batch is not None:
            self._requests += self._batch.requests()
        self._batch, self._parents = None, None

    # --- what is wrapped while the recorder is open

    def _wrap_generate(self) -> None:
        model: Any = self.model
        original = model.generate

        def generate(inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
            self._finish()
            batch, given = announced(model, inputs, generation_config, kwargs)
            self._batch, self._generating = batch, True
            try:
                out = original(inputs, generation_config, *args, **{"disable_compile": True, **kwargs})
                sequences = getattr(out, "sequences", out)
                if isinstance(sequences, Tensor):
                    batch.cut(sequences.shape[1] - given)
                return out
            finally:
                self._generating = False
                self._watch(None)
                self._finish()

        model.generate = generate
        self._undo.append(lambda: model.__dict__.pop("generate"))

    def _watch(self, cache: Any) -> None:
        """Be told how beams move between the rows of a cache; None: no longer."""
        if cache is self._watched:
            return
        if self._watched is not None:
            self._watched.__dict__.pop("reorder_cache", None)
        self._watched = cache if hasattr(cache, "reorder_cache") else None
        if self._watched is None:
            return
        original = self._watched.reorder_cache

        def reorder(beams: Tensor) -> Any:
            moved = beams.cpu().numpy().astype(np.int64)
            self._parents = moved if self._parents is None else self._parents[moved]
            return original(beams)

        self._watched.reorder_cache = reorder


def _host(layers: list[Tensor], dtype: torch.dtype) -> Array:
    """[N, L, ...] on the host from [N, ...] of each layer, in one copy where they are on one device."""
    one = len({t.device for t in layers}) == 1
    stacked = torch.stack([(t if one else t.cpu()).to(dtype) for t in layers], dim=1)
    return stacked.cpu().numpy()


def _scored(logits: Array, arrays: dict[str, Array], valid: npt.NDArray[np.bool_]) -> tuple[str, bool | None]:
    rows = np.flatnonzero(valid.ravel())[:SCORED_TOKENS]
    parts = [a[rows].reshape(-1, a.shape[2]) for a in (logits, arrays["experts"], arrays["weights"])]
    return score_function(*parts) if len(rows) else ("other", None)
