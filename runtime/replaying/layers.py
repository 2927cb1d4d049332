"""What is computed: the dense part of a catalog model and its experts, on given tensors, with the right operations and
bytes. The weights of the dense part are noise: nobody reads the words that come out, everybody waits for them.

    layer     RMS norm, q/k/v projection, the new KV entries written, attention over the real KV cache at the context's
              length (a window layer: its last entries; a linear one: its state), output projection; then
              MoE layer: RMS norm, router, top-k, shared experts; other layers: RMS norm, dense FFN
    experts   SwiGLU (two matrices: ReLU), one by one, or grouped over the slots where they lie
    head      RMS norm, LM head, the likeliest token and its logit to the host

Multi-head latent attention runs in its absorbed form, as one cached entry of `qk_dim` shared by all heads; its
projections are two matrices of the right size together. Cross-attention of encoder-decoder models: its projections.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from runtime.device.port import Buffer, DeviceError, Port
from runtime.experts.layout import Weights
from runtime.experts.store import ExpertStore
from runtime.replaying.shapes import Attention, Batches, cross_width, dense_elements, fitted
from runtime.replaying.work import Job
from sim.catalog.model_spec import ModelSpec


def expert(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """One expert on tokens x [n, H]: SwiGLU, or ReLU where its up matrix has no gate."""
    return F.linear(activated(F.linear(x, weights.up, weights.up_bias), weights.down), weights.down, weights.down_bias)


def activated(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, or relu(up) where there is no gate."""
    if up.shape[-1] == down.shape[-1]:
        return F.relu(up)
    gate, value = up.chunk(2, dim=-1)
    return F.silu(gate) * value


KERNELS = ("auto", "loop", "grouped")  # how the experts of a group run
MOST_GROUPS = 1023  # torch's grouped products on CUDA: "Can't process more than 1024 groups", from 1,024 on


def has_grouped() -> bool:
    """Whether this torch has a grouped matrix product."""
    return hasattr(F, "grouped_mm")


def grouped(x: torch.Tensor, ends: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Several experts at once: rows of x sorted by expert; ends int32 [experts]: where each one's rows end; up
    [experts, rows, H], down [experts, H, I]: the slots where they lie, also those that have no row."""
    inner = activated(F.grouped_mm(x, up.transpose(1, 2), offs=ends), down)
    return F.grouped_mm(inner, down.transpose(1, 2), offs=ends)


# --- the work of a catalog model ---


class _Layer(NamedTuple):
    """One layer's dense weights."""

    norms: torch.Tensor
    project_in: torch.Tensor
    project_out: torch.Tensor
    cross: Weights | None
    router: torch.Tensor | None
    ffn: Weights | None  # shared experts of an MoE layer (None: it has none), the FFN of another


class _Aside(NamedTuple):
    """Of a visit, for the CPU: its activations, and the sum that is added at the end of its layer."""

    normed: torch.Tensor
    total: torch.Tensor


class CatalogWork:
    """The kernels of one model, for runtime.replaying.machine.Machine (which see, class Work).

    columns: for each layer of the model, the MoE layer that it leads to (sim.costs.classes.layer_columns). to_host:
    whether experts may be computed on the CPU, which needs the activations there; defers: some of them until the next
    visit, which needs the next one's, too.
    """

    def __init__(
        self,
        port: Port,
        model: ModelSpec,
        store: ExpertStore[Weights],
        batches: Batches,
        moe_layers: Sequence[int],
        n_layers: int,
        to_host: bool,
        group: bool = False,
        seed: int = 0,
        defers: bool = False,
    ) -> None:
        self.port, self.model, self.store, self.batches, self.in_one = port, model, store, batches, group
        self.dtype, self.to_host, self.defers = store.layout.dtype, to_host, defers
        self.moe = {layer: i for i, layer in enumerate(moe_layers)}
        columns = np.searchsorted(np.asarray(moe_layers), np.arange(n_layers)).tolist()
        self.layers_of: list[list[int]] = [[] for _ in range(len(moe_layers) + 1)]
        for layer, column in enumerate(columns):
            self.layers_of[column].append(layer)
        self.shift = max(0, model.n_layers - n_layers)  # a trace of the decoder alone
        self.kinds = [model.attention_kind(layer + self.shift) for layer in range(n_layers)]
        self.shapes = [Attention.of(model, kind) for kind in self.kinds]
        self.buffers: list[Buffer] = []
        self._allocate(n_layers, seed)

    @property
    def group(self) -> bool:
        """Whether the experts of a group run in one kernel; its torch refuses too many slots."""
        return self.in_one and max(*self.store.slots, self.store.stages) <= MOST_GROUPS

    # --- memory ---

    def _take(self, elements: int, what: str) -> torch.Tensor:
        """Device memory for so many elements."""
        return self._take_bytes(elements * self.dtype.itemsize, what).view(self.dtype)

    def _take_bytes(self, nbytes: int, what: str) -> torch.Tensor:
        self.buffers.append(self.port.alloc_device(nbytes, what))
        return self.buffers[-1].tensor

    def _staging(self, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> torch.Tensor:
        """Page-locked host memory that the device writes into."""
        count = int(np.prod(shape))
        self.buffers.append(self.port.alloc_host(count * dtype.itemsize, what))
        return self.buffers[-1].tensor.view(dtype).view(shape)

    def _allocate(self, n_layers: int, seed: int) -> None:
        model, rows = self.model, self.batches.most
        flat = self._take(dense_elements(model, n_layers, tuple(self.moe)), "the dense part")
        generator = torch.Generator(self.port.device).manual_seed(seed) if flat.device.type in ("cpu", "cuda") else None
        flat.normal_(0, 0.02, generator=generator)
        self._flat, self._at = flat, 0
        self.head = self._matrix(model.vocab, model.hidden)
        self.last_norm = self._matrix(1, model.hidden)[0].fill_(1)
        self.layers = [self._layer_weights(layer) for layer in range(n_layers)]
        entries = self.batches.places * self.batches.longest
        self.caches = [self._cache(layer, entries) for layer in range(n_layers)]
        self.ids_host = self._staging((rows, model.top_k), torch.int64, "the router's ids")
        self.best_host = self._staging((rows,), torch.float32, "the best logits")
        self.tokens_host = self._staging((rows,), torch.int64, "the next tokens")
        listed = 2 * rows * model.top_k  # rows of all experts of a visit, and behind them the bits of their weights
        self.jobs = self.jobs_host = self._staging((listed,), torch.int32, "what a visit executes")
        if self.port.device.type != "cpu":
            self.jobs = self._take_bytes(4 * listed, "what a visit executes").view(torch.int32)
        if self.to_host:
            self.aside = self.next = self._aside(rows)
            if self.defers:
                self.next = self._aside(rows)
            self.of_host: dict[int, _Aside] = {}  # of each expert on the CPU what it reads and adds to

    def _aside(self, rows: int) -> _Aside:
        shape = rows, self.model.hidden
        normed = self._staging(shape, self.dtype, "activations for the CPU")
        return _Aside(normed, self._staging(shape, self.dtype, "what the CPU computed"))

    def _matrix(self, rows: int, columns: int) -> torch.Tensor:
        size = rows * columns
        self._at += size
        return self._flat[self._at - size : self._at].view(rows, columns)

    def _ffn(self, intermediate: int) -> Weights:
        up = self._matrix((self.model.expert_matrices - 1) * intermediate, self.model.hidden)
        return Weights(up, self._matrix(self.model.hidden, intermediate))

    def _layer_weights(self, layer: int) -> _Layer:
        m, a, moe = self.model, self.shapes[layer], layer in self.moe
        cross = cross_width(m) if layer + self.shift >= m.encoder_layers else 0
        inner = m.shared_intermediate if moe else (m.dense_intermediate or 0)
        return _Layer(
            self._matrix(2, m.hidden).fill_(1),
            self._matrix(a.width_in, m.hidden),
            self._matrix(m.hidden, a.width_out),
            Weights(self._matrix(cross, m.hidden), self._matrix(m.hidden, cross)) if cross else None,
            self._matrix(m.n_experts, m.hidden) if moe else None,
            self._ffn(inner) if inner else None,
        )

    def _cache(self, layer: int, entries: int) -> tuple[torch.Tensor, ...]:
        """Keys and values [places, kv heads, entries, width], noise from the start; linear states; or nothing."""
        a, places = self.shapes[layer], self.batches.places
        if self.kinds[layer] == "none":
            return ()
        if self.kinds[layer] == "linear":
            size = max(1, self.model.linear_state_bytes // self.dtype.itemsize)
            return (self._take(places * size, f"states of layer {layer}").view(places, size).fill_(0.01),)
        widths = (a.qk,) if a.latent else (a.qk, a.v)
        parts = [self._take(entries * a.kv_heads * width, f"the KV cache of layer {layer}") for width in widths]
        noise = torch.linspace(-0.1, 0.1, 997, dtype=torch.float32).to(parts[0])
        for part in parts:
            whole = len(part) // 997 * 997
            part[:whole].view(-1, 997).copy_(noise.expand(whole // 997, 997))
            part[whole:] = 0
        shaped = [p.view(places, a.kv_heads, -1, width) for p, width in zip(parts, widths, strict=True)]
        return (shaped[0], shaped[0][..., : a.v]) if a.latent else tuple(shaped)

    def close(self) -> None:
        """Give all memory back, when nothing uses it any more."""
        for buffer in self.buffers:
            self.port.free(buffer)
        self.buffers = []

    # --- a step ---

    def begin_step(self, step: int) -> None:
        """The rows of the step and their embeddings."""
        self.step, self.rows = step, self.batches.rows[step]
        self.left = False  # whether the last visit of the step deferred experts on the CPU
        ids = torch.from_numpy(self.rows.tokens * 7919 % self.model.vocab)
        self.x = F.embedding(self._up(ids), self.head)
        self.past = 0

    def _up(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(self.port.device, non_blocking=True)

    def dense(self, column: int) -> None:
        """Every layer in front of an MoE layer's experts (the last column: of the end)."""
        for layer in self.layers_of[column]:
            w = self.layers[layer]
            if self.kinds[layer] != "none":
                self.x = self.x + self._attention(layer, w, self._norm(self.x, w.norms[0]))
            if w.cross is not None:
                self.x = self.x + expert(self.x, w.cross)
            self.port.poll()
            normed = self._norm(self.x, w.norms[1])
            if w.router is None:
                if w.ffn is not None:
                    self.x = self.x + expert(normed, w.ffn)
                continue
            self.ids = F.linear(normed, w.router).topk(self.model.top_k, dim=-1)[1]
            self.normed = normed
            if w.ffn is not None:
                self.x = self.x + expert(normed, w.ffn)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)

    def _attention(self, layer: int, w: _Layer, normed: torch.Tensor) -> torch.Tensor:
        a, cache, projected = self.shapes[layer], self.caches[layer], F.linear(normed, w.project_in)
        if len(cache) == 1:
            places = self._up(torch.from_numpy(np.unique(self.rows.places)))
            cache[0][places] = cache[0][places].mul(0.99)
            return F.linear(fitted(projected, a.width_out), w.project_out)
        q, keys, values = a.split(projected)
        self._remember(a, cache, keys, values)
        window = self.model.window if self.kinds[layer] in ("window", "sparse") else None
        attend = self._attend_prompt if self.rows.prefill else self._attend_each
        return F.linear(fitted(attend(a, cache, q, window), a.width_out), w.project_out)

    def _remember(
        self, a: Attention, cache: tuple[torch.Tensor, ...], keys: torch.Tensor, values: torch.Tensor | None
    ) -> None:
        """The rows' own KV entries."""
        rows = self.rows
        if rows.prefill:
            first, last = int(rows.positions[0]), int(rows.positions[-1]) + 1
            place = int(rows.places[0])
            cache[0][place, :, first:last] = keys.view(-1, a.kv_heads, a.qk).transpose(0, 1)
            if values is not None:
                cache[1][place, :, first:last] = values.view(-1, a.kv_heads, a.v).transpose(0, 1)
            return
        for i, (place, position) in enumerate(zip(rows.places.tolist(), rows.positions.tolist(), strict=True)):
            cache[0][place, :, position] = keys[i].view(a.kv_heads, a.qk)
            if values is not None:
                cache[1][place, :, position] = values[i].view(a.kv_heads, a.v)

    def _attend_each(
        self, a: Attention, cache: tuple[torch.Tensor, ...], q: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Each row over its own request's entries."""
        out = []
        for i, (place, position) in enumerate(
            zip(self.rows.places.tolist(), self.rows.positions.tolist(), strict=True)
        ):
            first = 0 if window is None else max(0, position + 1 - window)
            k, v = (part[place : place + 1, :, first : position + 1] for part in cache)
            row = q[i].view(1, a.heads, 1, a.qk)
            out.append(F.scaled_dot_product_attention(row, k, v, enable_gqa=True).view(1, -1))
        return out[0] if len(out) == 1 else torch.cat(out)

    def _attend_prompt(
        self, a: Attention, cache: tuple[torch.Tensor, ...], q: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """All rows over one request's entries, each up to its own."""
        place = int(self.rows.places[0])
        first, last = int(self.rows.positions[0]), int(self.rows.positions[-1]) + 1
        start = 0 if window is None else max(0, first + 1 - window)
        k, v = (part[place : place + 1, :, start:last] for part in cache)
        at = torch.arange(first, last, device=q.device)[:, None]
        entry = torch.arange(start, last, device=q.device)[None, :]
        mask = (entry <= at) if window is None else (entry <= at) & (entry > at - window)
        rows = q.view(1, -1, a.heads, a.qk).transpose(1, 2)
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(len(q), -1)

    # --- a visit ---

    def read_back(self) -> None:
        """The router's own ids to the host (the trace's replace them), and activations where the CPU may compute."""
        n = len(self.rows.tokens)
        self.ids_host[:n].copy_(self.ids, non_blocking=True)
        if self.to_host:
            self.aside, self.next = self.next, self.aside  # what the last visit deferred still reads the other
            self.aside.normed[:n].copy_(self.normed, non_blocking=True)

    def routed(self, jobs: dict[int, Job], host_jobs: dict[int, Job], later: Collection[int] = ()) -> None:
        """What this visit executes, by global expert: rows and weights go to the device in one copy."""
        n, at, total = len(self.rows.tokens), 0, sum(len(job.rows) for job in jobs.values())
        listed = self.jobs_host[: 2 * total]  # one piece: a copy of anything else is not asynchronous
        rows, bits = listed.view(2, total)
        self.index: dict[int, tuple[torch.Tensor, torch.Tensor, bool]] = {}
        places = []
        for g, job in jobs.items():
            end = at + len(job.rows)
            rows[at:end] = torch.from_numpy(job.rows)
            bits[at:end].view(torch.float32).copy_(torch.from_numpy(job.weights))
            places.append((g, at, end, len(job.rows) == n and bool((job.rows == np.arange(n)).all())))
            at = end
        if self.jobs is not self.jobs_host:
            self.jobs[: 2 * total].copy_(listed, non_blocking=True)
            rows, bits = self.jobs[: 2 * total].view(2, total)
        weights = bits.view(torch.float32).to(self.dtype)[:, None]
        for g, first, end, every in places:
            self.index[g] = (rows[first:end], weights[first:end], every)
        if self.to_host:
            self._divide(host_jobs, later)

    def _divide(self, host_jobs: Collection[int], later: Collection[int]) -> None:
        """What the CPU computes at once is added at the end of this layer, and the rest at the end of the next."""
        n = len(self.rows.tokens)
        if host_jobs and not self.left:
            self.aside.total[:n].zero_()
        if later:
            self.next.total[:n].zero_()
        for g in host_jobs:
            self.of_host[g] = _Aside(self.aside.normed, (self.next if g in later else self.aside).total)
        self.left = len(later) > 0

    def expert(self, g: int, slot: int) -> None:
        """One expert from its slot, on the rows that are its."""
        rows, weights, every = self.index[g]
        own = self.normed if every else self.normed[rows]
        out = expert(own, self.store.in_slot(slot)) * weights
        self.x = self.x + out if every else self.x.index_add(0, rows, out)

    def experts(self, layer: int, jobs: Sequence[Job], slots: Sequence[int]) -> None:
        """Several experts at once, over all slots of their scope, and over all stages."""
        order = sorted(range(len(jobs)), key=lambda i: slots[i])
        for first, weights in self.store.regions(layer):
            there = [i for i in order if first <= slots[i] < first + len(weights.up)]
            if there:
                self._experts_of([jobs[i] for i in there], [slots[i] - first for i in there], weights)

    def _experts_of(self, jobs: Sequence[Job], places: Sequence[int], of: Weights) -> None:
        """Experts at ascending places of the weights of several."""
        tokens = np.zeros(len(of.up), np.int32)
        for job, place in zip(jobs, places, strict=True):
            tokens[place] = len(job.rows)
        parts = [self.index[job.expert] for job in jobs]
        rows, weights = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        ends = self._up(torch.from_numpy(np.cumsum(tokens, dtype=np.int32)))
        out = grouped(self.normed[rows], ends, of.up, of.down) * weights
        self.x = self.x.index_add(0, rows, out)

    def on_host(self, job: Job) -> None:
        """One expert with the host's own weights; runs in the host's thread."""
        rows, (normed, total) = torch.from_numpy(job.rows), self.of_host[job.expert]
        out = expert(normed[rows], self.store.on_host(job.expert))
        total.index_add_(0, rows, out * torch.from_numpy(job.weights).to(self.dtype)[:, None])

    def join_host(self) -> None:
        """Add what the CPU computed."""
        self.x = self.x + self._up(self.aside.total[: len(self.rows.tokens)])

    # --- the end of a step ---

    def end(self) -> None:
        """Final norm, LM head, the likeliest token of each row that needs one (of a prompt: the last)."""
        x = self.x[-1:] if self.rows.prefill else self.x
        logits = F.linear(self._norm(x, self.last_norm), self.head)
        best, tokens = logits.max(dim=-1)
        self.best_host[: len(x)].copy_(best, non_blocking=True)
        self.tokens_host[: len(x)].copy_(tokens, non_blocking=True)

    def check(self) -> None:
        """After the step has run: raises DeviceError when what came out is no number (a NaN wins every maximum)."""
        n = 1 if self.rows.prefill else len(self.rows.tokens)
        if n and not bool(torch.isfinite(self.best_host[:n]).all()):
            raise DeviceError(f"step {self.step}: the logits are not finite")
