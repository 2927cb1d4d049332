"""The loss of one substitution, measured one at a time: one slot of one token at one layer is answered otherwise.

A window of text is run through a decoder of ours. At a place drawn at random (layer, position, slot) the slot's expert
i is answered for by an expert j that the token was not routed to, in three ways (`WAYS`):

    keep  j answers with the slot's router weight w_i (BuddyMoE, arXiv 2511.10054): the layer's output moves by
          w_i (f_j(x) - f_i(x))
    own   j answers with its own weight: the router's probabilities p renormalised over the set with j in place of i,
          which changes the weights of the other slots too
    drop  nobody answers, nothing is renormalised: the output moves by -w_i f_i(x)

Everything else computes as it does from there on, later layers' routers as well. The damage is the sum over this and
all later positions of KL(unmodified || modified) in nats; a window's end cuts it off. Beside it stands what could have
told it before: what the router says (weight, probabilities, ranks, gaps), what buddy lists know (q(j|i), mean cosine)
and what only running j would tell (cosine and error at this very hidden state).

Layers below the substituted one are not run again: their hidden states are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.closed_loop.text_windows import TextWindows
from runtime.small_model.model import MoeBlock, MoeDecoder, rotary_table
from traces.progress import counted

Float = npt.NDArray[np.float64]
WAYS = ("keep", "own", "drop")
NEAR = 8  # stand-ins of every second draw are of the first so many ranks behind the top k
TINY = 1e-30  # no length is divided by less


@dataclass(frozen=True, eq=False)
class Substitutions:
    """Columns float64 [S], one row for each substitution: window, file, layer, near (1: of the NEAR ranks), those of
    `predictors`, and of each way damage (`keep damage`: nats of KL from there on), nats (rise of what really came, from
    there on) and here (KL at the token itself)."""

    columns: dict[str, Float]

    def __getitem__(self, name: str) -> Float:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["layer"])


@dataclass(frozen=True, eq=False)
class Unmodified:
    """A batch of windows as the model runs them: tokens int64 [B, T]; after each layer the hidden states [B, T, H];
    of each layer the experts' input x [B, T, H] and router logits [B, T, E]; log_p float64 [B, T - 1, V]."""

    tokens: Tensor
    after: list[Tensor]
    inputs: list[Tensor]
    logits: list[Tensor]
    log_p: Tensor


def unmodified(model: MoeDecoder, tokens: Tensor) -> Unmodified:
    """One forward pass, everything kept that substitutions start from."""
    after, inputs, logits, hooks = [], [], [], []
    shape = (*tokens.shape, -1)

    def layer_hook(_module: Any, _args: Any, out: Any) -> None:
        after.append(out[0])

    def gate_hook(_module: Any, args: Any, out: Any) -> None:
        inputs.append(args[0].view(shape))
        logits.append(out[0].view(shape))

    for layer, block in zip(model.layers, model.moe_blocks, strict=True):
        hooks += [layer.register_forward_hook(layer_hook), block.gate.register_forward_hook(gate_hook)]
    try:
        out = model(tokens)[0]
    finally:
        for hook in hooks:
            hook.remove()
    return Unmodified(tokens, after, inputs, logits, out[:, :-1].double().log_softmax(-1))


@dataclass(frozen=True, eq=False)
class Places:
    """One place in each window of a batch, int64 [B]: position, slot (0: the largest weight), rank of the stand-in by
    the router's logits (k: the first behind the top k)."""

    position: Tensor
    slot: Tensor
    rank: Tensor


def draw_places(rng: np.random.Generator, n: int, length: int, n_experts: int, top_k: int, near: bool) -> Places:
    """Uniform positions that something follows, slots and stand-ins; near: of the first NEAR ranks alone."""
    others = n_experts - top_k
    ranks = top_k + rng.integers(0, min(NEAR, others) if near else others, n)
    drawn = (rng.integers(0, length - 1, n), rng.integers(0, top_k, n), ranks)
    return Places(*map(torch.from_numpy, drawn))


@dataclass(frozen=True, eq=False)
class Swap:
    """What a substitution is at each place of a batch: ids int64 [B, k + 1] in the router's order, the stand-in last;
    outputs [B, k + 1, H] of these experts; p [B, k + 1] over all experts; weights [B, k] of the slots; and the
    layer's output with each way [B, H], less the unmodified one."""

    ids: Tensor
    outputs: Tensor
    p: Tensor
    weights: Tensor
    moved: dict[str, Tensor]


def swap(block: MoeBlock, x: Tensor, logits: Tensor, places: Places) -> Swap:
    """x [B, H] and logits [B, E] at the places."""
    k, row = block.gate.top_k, torch.arange(len(x))
    p, order = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    ids = torch.cat([order[:, :k], order[row, places.rank][:, None]], 1)
    p = torch.cat([p[:, :k], p[row, places.rank][:, None]], 1)
    one = torch.ones(len(x), 1)
    outputs = torch.stack([block.experts(x, ids[:, s : s + 1], one) for s in range(k + 1)], 1)
    weights = p[:, :k] / p[:, :k].sum(1, keepdim=True)
    mine, own = F.pad(weights, (0, 1)), p.clone()
    own[row, places.slot] = 0.0
    changed = {name: mine.clone() for name in WAYS}
    for name in ("keep", "drop"):
        changed[name][row, places.slot] = 0.0
    changed["keep"][:, k] = weights[row, places.slot]
    changed["own"] = own / own.sum(1, keepdim=True)
    moved = {name: ((changed[name] - mine)[:, :, None] * outputs).sum(1) for name in WAYS}
    return Swap(ids, outputs, p, weights, moved)


def go_on(model: MoeDecoder, layer: int, hidden: Tensor) -> Tensor:
    """The last hidden states [B, T, H], normalised, from those behind `layer`."""
    rotary = rotary_table(model.config, hidden.device)
    for later in model.decoder_layers[layer + 1 :]:
        hidden = later(hidden, rotary)[0]
    out: Tensor = model.norm(hidden)
    return out


def damages(model: MoeDecoder, run: Unmodified, layer: int, places: Places, moved: Tensor) -> Float:
    """float64 [3, B]: KL from the place on, rise of nats of what really came, KL at the place; moved [B, H]: what the
    layer's output changes by at each window's place."""
    rows = torch.arange(len(moved))
    hidden = run.after[layer].clone()
    hidden[rows, places.position] += moved
    hidden = go_on(model, layer, hidden)[:, :-1]
    after = torch.arange(hidden.shape[1])[None] >= places.position[:, None]  # what lies before is as it was
    if layer == len(model.layers) - 1:
        after &= torch.arange(hidden.shape[1])[None] == places.position[:, None]  # no attention is left to carry it
    log_q = F.linear(hidden[after], model.embed_tokens.weight).double().log_softmax(-1)
    log_p, came = run.log_p[after], run.tokens[:, 1:][after][:, None]
    kl = torch.zeros(after.shape, dtype=torch.float64)
    kl[after] = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    rise = torch.zeros_like(kl)
    rise[after] = (log_p - log_q).gather(1, came)[:, 0]
    out: Float = torch.stack([kl.sum(1), rise.sum(1), kl[rows, places.position]]).numpy()
    return out


def predictors(found: Swap, places: Places, residual: Tensor, q: Tensor, cosine: Tensor) -> dict[str, Tensor]:
    """What might tell the damage, each [B]. residual [B, H]: the stream behind the layer; q, cosine [E, E]: of the
    layer's experts over the calibration text."""
    k, row = found.weights.shape[1], torch.arange(len(residual))
    i, j = found.ids[row, places.slot], found.ids[:, k]
    f_i, f_j = found.outputs[row, places.slot], found.outputs[:, k]
    w, p_i, p_j = found.weights[row, places.slot], found.p[row, places.slot], found.p[:, k]
    share = found.weights.double().clamp_min(TINY)
    two = F.pad(found.weights, (0, 1))[:, :2]
    return {
        "expert": i,
        "stand_in": j,
        "slot": places.slot,
        "position": places.position,
        "rank": places.rank - k + 1,
        "weight": w,
        "p_i": p_i,
        "p_j": p_j,
        "gap": p_i.double().clamp_min(TINY).log() - p_j.double().clamp_min(TINY).log(),
        "tae": -(share * share.log()).sum(1) / max(np.log(k), TINY),
        "margin": two[:, 0] - two[:, 1],
        "q": q[i, j],
        "mean cosine": cosine[i, j],
        "cosine": F.cosine_similarity(f_i, f_j, dim=1),
        "error": (f_j - f_i).norm(dim=1) / f_i.norm(dim=1).clamp_min(TINY),
        "moved": w * (f_j - f_i).norm(dim=1) / residual.norm(dim=1).clamp_min(TINY),
    }


@torch.inference_mode()
def experiment(
    model: MoeDecoder, text: TextWindows, q: Float, cosine: Float, draws: int, seed: int, batch: int = 8
) -> Substitutions:
    """`draws` substitutions in each window at each layer; q, cosine [L, E, E]: see `predictors`.

    Every second draw takes its stand-in of the NEAR first ranks behind the top k, the others any expert outside the
    token's set, uniformly."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Float]] = []
    for first in counted(range(0, len(text.tokens), batch), "batch of windows", at_once=False):
        run = unmodified(model, torch.from_numpy(text.tokens[first : first + batch]))
        windows = np.arange(first, first + len(run.tokens))
        for part in _of_batch(model, run, q, cosine, draws, rng):
            rows.append({"window": windows.astype(float), "file": text.file[windows].astype(float), **part})
    return Substitutions({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def _of_batch(
    model: MoeDecoder, run: Unmodified, q: Float, cosine: Float, draws: int, rng: np.random.Generator
) -> Iterator[dict[str, Float]]:
    n, length = run.tokens.shape
    config, row = model.config, torch.arange(n)
    for layer, block in enumerate(model.moe_blocks):
        matrices = [torch.from_numpy(each[layer]) for each in (q, cosine)]
        for draw in range(draws):
            near = draw % 2 == 1
            places = draw_places(rng, n, length, config.num_experts, config.num_experts_per_tok, near)
            at = (row, places.position)
            found = swap(block, run.inputs[layer][at], run.logits[layer][at], places)
            told = predictors(found, places, run.after[layer][at], *matrices)
            out = {name: np.asarray(value.double().numpy()) for name, value in told.items()}
            out |= {"layer": np.full(n, float(layer)), "near": np.full(n, float(near))}
            for way in WAYS:
                damage, nats, here = damages(model, run, layer, places, found.moved[way])
                out |= {f"{way} damage": damage, f"{way} nats": nats, f"{way} here": here}
            yield out
