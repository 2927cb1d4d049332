"""`python -m runtime.train`: train the decoder of `runtime.model` on the standard library's sources.

Seeded and resumable: the data of a step and its learning rate follow from the step's number and the seed alone, so a
run that was paused (`--minutes`) and taken up again (`--resume`) makes the very steps of one that never stopped. The
folder `--out` always holds a usable state: `model.safetensors` (float16), `config.json`, `tokenizer.json`, `record.json`
and, to go on from, `resume.safetensors` (float32 weights and both moments of AdamW).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from runtime import text
from runtime.model import ModelConfig, ModelError, MoeDecoder, read_tensors, replace_file, save_checkpoint

RECORD_VERSION = 1
CURVE_EVERY = 50


class TrainError(ValueError):
    """The options cannot be trained with; the text names the option."""


@dataclass(frozen=True)
class TrainOptions:
    """What the trained weights depend on, beside the model's sizes and the text. 

    Batches are of `batch` windows; `balance` times the mean balance loss over layers is added to the training loss (0.06
    over six layers is Switch Transformer's 0.01 for each).
    """

    steps: int = 8_000
    batch: int = 8
    seed: int = 0
    learning_rate: float = 4e-3
    warmup: int = 200
    decay_share: float = 0.5
    weight_decay: float = 0.1
    balance: float = 0.06
    clip: float = 1.0
    threads: int = 1
    corpus_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "learning_rate", "clip", "threads"):
            if not getattr(self, name) > 0:
                raise TrainError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 < self.decay_share <= 1:
            raise TrainError(f"decay_share is {self.decay_share}; it must be in (0, 1]")


@dataclass
class Progress:
    """How far a run is. `curve` rows: step, training nats per token, balance loss (means since the row before)."""

    step: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    heldout_curve: list[list[float]] = field(default_factory=list)
    expert_load: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    """The corpus, its vocabulary and both streams of token ids, int64 `[tokens]`."""

    corpus: text.Corpus
    tokenizer: Tokenizer
    train: text.Ids
    heldout: text.Ids

    @property
    def heldout_bytes(self) -> int:
        return sum(len(f.data) for f in self.corpus.heldout)


def prepare(vocab_size: int, corpus_bytes: int | None) -> Data:
    corpus = text.read_corpus(limit_bytes=corpus_bytes)
    tokenizer = text.train_tokenizer(corpus.train, vocab_size)
    return Data(corpus, tokenizer, text.encode(tokenizer, corpus.train), text.encode(tokenizer, corpus.heldout))


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, context: int) -> tuple[int, text.Ids]:
    generator = np.random.default_rng([seed, epoch])
    return int(generator.integers(context)), generator.permutation(windows)


def batch_at(stream: text.Ids, step: int, options: TrainOptions, context: int) -> Tensor:
    """The windows of step `step`: int64 `[batch, context + 1]`.

    An epoch visits every window once in an order of its own; windows start at another phase in each epoch.
    """
    windows = (len(stream) - 1) // context - 1
    if windows < 1:
        raise TrainError(f"the text has {len(stream)} tokens; it must have at least {2 * context + 1}")
    rows = []
    for i in range(step * options.batch, (step + 1) * options.batch):
        phase, order = _epoch(options.seed, i // windows, windows, context)
        start = phase + int(order[i % windows]) * context
        rows.append(stream[start : start + context + 1])
    return torch.from_numpy(np.stack(rows))


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Warm up linearly, stay, and fall linearly to zero over the last `decay_share` of the steps."""
    rise = (step + 1) / max(1, options.warmup)
    fall = (options.steps - step) / (options.steps * options.decay_share)
    return options.learning_rate * min(1.0, rise, fall)


def make_optimizer(model: MoeDecoder, options: TrainOptions) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    scales = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=True)


def train_step(
    model: MoeDecoder, optimizer: torch.optim.AdamW, windows: Tensor, step: int, options: TrainOptions
) -> tuple[Tensor, Tensor]:
    """One update on `windows [B, T + 1]`; returns the mean nats per token and the balance loss, detached."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, options)
    logits, balance = model(windows[:, :-1])
    nats = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    (nats + options.balance * balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
    optimizer.step()
    return nats.detach(), balance.detach()


@contextmanager
def counted_experts(model: MoeDecoder) -> Iterator[Tensor]:
    """While open, the yielded int64 `[layers, experts]` (on the CPU) counts the slots routed to each expert."""
    counts = torch.zeros(len(model.layers), model.config.num_experts, dtype=torch.int64)

    def counter(layer: int) -> Any:
        def hook(_module: Any, routed: tuple[Tensor, Tensor, Tensor]) -> None:
            counts[layer] += torch.bincount(routed[1].flatten(), minlength=counts.shape[1]).cpu()

        return hook

    handles = [
        layer.mlp.experts.register_forward_pre_hook(counter(i)) for i, layer in enumerate(model.layers)
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def evaluate(model: MoeDecoder, stream: text.Ids, n_bytes: int) -> tuple[float, Tensor]:
    """Held-out bits per byte, and each expert's load int64 `[layers, experts]` in slots.

    Every token but the file tokens is predicted exactly once, in windows that do not overlap (so the first of a window
    has no context but one token): the bits of all of them over the bytes of the text.
    """
    context, device = model.config.max_position_embeddings, model.embed_tokens.weight.device
    whole = (len(stream) - 1) // context
    starts = np.arange(whole) * context
    pieces = [stream[starts[i : i + 16, None] + np.arange(context + 1)] for i in range(0, whole, 16)]
    if len(rest := stream[whole * context :]) > 1:
        pieces.append(rest[None])
    nats = 0.0
    model.eval()
    with counted_experts(model) as counts:
        for piece in pieces:
            windows = torch.from_numpy(piece).to(device)
            logits, _ = model(windows[:, :-1])
            targets = windows[:, 1:].flatten()
            nats += F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum", ignore_index=0).item()
    model.train()
    return nats / math.log(2) / n_bytes, counts


@dataclass
class Run:
    """A training under way: what it was asked for, its data, its model and how far it is."""

    config: ModelConfig
    options: TrainOptions
    out: Path
    data: Data
    model: MoeDecoder
    optimizer: torch.optim.AdamW
    baselines: dict[str, float]
    progress: Progress = field(default_factory=Progress)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.options.steps


def start(config: ModelConfig, options: TrainOptions, out: Path, device: torch.device) -> Run:
    """A run at step 0, nothing written yet."""
    torch.set_num_threads(options.threads)
    data = prepare(config.vocab_size, options.corpus_bytes)
    config = replace(config, vocab_size=data.tokenizer.get_vocab_size())
    model = MoeDecoder(config, options.seed).to(device)
    baselines = {
        "order2_bytes": text.order2_bits_per_byte(data.corpus),
        "order2_tokens": text.order2_token_bits_per_byte(data.corpus, data.tokenizer),
    }
    return Run(config, options, out, data, model, make_optimizer(model, options), baselines)


def advance(run: Run, minutes: float | None = None, save_every_s: float = 300.0) -> None:
    """Train to the end, or until `minutes` have passed; evaluate twenty times on the way; save as it goes."""
    begun = saved = time.monotonic()
    before = run.progress.seconds
    evaluate_every = max(1, run.options.steps // 20)
    sums = torch.zeros(2, device=run.device)
    while not run.finished:
        step = run.progress.step
        windows = batch_at(run.data.train, step, run.options, run.config.max_position_embeddings)
        losses = train_step(run.model, run.optimizer, windows.to(run.device), step, run.options)
        sums += torch.stack(losses)
        run.progress.step = step + 1
        run.progress.seconds = before + time.monotonic() - begun
        if run.progress.step % CURVE_EVERY == 0 or run.finished:
            _add_to_curve(run, sums)
            sums.zero_()
            over = minutes is not None and time.monotonic() - begun > 60 * minutes
            due = over or time.monotonic() - saved > save_every_s
            if run.progress.step % evaluate_every < CURVE_EVERY or run.finished:
                _evaluate(run)
                due = True
            if due:
                save_run(run)
                saved = time.monotonic()
            if over:
                return


def _add_to_curve(run: Run, sums: Tensor) -> None:
    p = run.progress
    last = p.curve[-1][0] if p.curve else 0
    nats, balance = (sums / (p.step - last)).tolist()
    p.curve.append([p.step, round(nats, 4), round(balance, 4)])
    per_s = p.step * run.options.batch * run.config.max_position_embeddings / p.seconds
    left = (run.options.steps - p.step) * p.seconds / p.step / 60
    say(f"step {p.step}/{run.options.steps}  {nats:.3f} nats/token  {per_s:.0f} tokens/s  {left:.0f} min left")


def _evaluate(run: Run) -> None:
    bits, counts = evaluate(run.model, run.data.heldout, run.data.heldout_bytes)
    run.progress.heldout_curve.append([run.progress.step, round(bits, 4)])
    fair = counts.sum(1, keepdim=True) / counts.shape[1]
    run.progress.expert_load = (counts / fair).tolist()
    ratio = bits / run.baselines["order2_bytes"]
    say(f"held out: {bits:.4f} bits/byte, {ratio:.3f} x order-2; least expert {(counts / fair).min():.2f} of fair share")


def save_run(run: Run) -> None:
    """Everything in `run.out`; the resume file last, so that it never stands beside older weights' record."""
    run.out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(run.out, run.model)
    replace_file(run.out / "tokenizer.json", (run.data.tokenizer.to_str() + "\n").encode())
    replace_file(run.out / "record.json", (json.dumps(record(run), indent=1) + "\n").encode())
    meta = {"identity": identity(run), "progress": json.dumps(asdict(run.progress))}
    replace_file(run.out / "resume.safetensors", save(_state_tensors(run), meta))


def identity(run: Run) -> str:
    """What two runs must share for one to go on from the other, as a JSON string."""
    parts = {"config": asdict(run.config), "options": asdict(run.options), "data": run.data.corpus.describe()["sha256"]}
    return json.dumps(parts, sort_keys=True)


def _state_tensors(run: Run) -> dict[str, Tensor]:
    tensors = {}
    for name, p in run.model.named_parameters():
        tensors[f"weight.{name}"] = p.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = run.optimizer.state[p][moment]
    return {name: t.cpu().contiguous() for name, t in tensors.items()}


def resume(run: Run) -> None:
    """Put `run` where `resume.safetensors` of its folder left off; TrainError where that is another run's."""
    path = run.out / "resume.safetensors"
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        meta = file.metadata() or {}
    if meta.get("identity") != identity(run):
        raise TrainError(f"{path}: written by {meta.get('identity')}; this run is {identity(run)}: use another --out")
    run.progress = Progress(**json.loads(meta["progress"]))
    for name, p in run.model.named_parameters():
        p.data.copy_(tensors[f"weight.{name}"])
        moments = {m: tensors[f"{m}.{name}"].to(run.device) for m in ("exp_avg", "exp_avg_sq")}
        run.optimizer.state[p] = {"step": torch.tensor(float(run.progress.step), device=p.device), **moments}


def record(run: Run) -> dict[str, Any]:
    """What `record.json` says: enough to train again and to judge the result."""
    p, heldout = run.progress, run.progress.heldout_curve
    bits = heldout[-1][1] if heldout else None
    vocabulary = run.data.tokenizer.to_str()
    return {
        "format_version": RECORD_VERSION,
        "command": command(run),
        "options": asdict(run.options),
        "config": asdict(run.config),
        "parameters": sum(q.numel() for q in run.model.parameters()),
        "data": run.data.corpus.describe(),
        "tokenizer": {
            "sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "heldout_bytes_per_token": run.data.heldout_bytes / len(run.data.heldout),
        },
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(run.device),
            "threads": run.options.threads,
        },
        "steps_done": p.step,
        "finished": run.finished,
        "tokens_seen": p.step * run.options.batch * run.config.max_position_embeddings,
        "epochs": p.step * run.options.batch * run.config.max_position_embeddings / len(run.data.train),
        "seconds": round(p.seconds, 1),
        "heldout": {
            "bits_per_byte": bits,
            "at_step": heldout[-1][0] if heldout else None,
            "baselines": run.baselines,
            "baseline_model": "interpolated Witten-Bell over two preceding symbols, fitted on the training files",
            "ratio_to_order2_bytes": bits and bits / run.baselines["order2_bytes"],
            "least_expert_share_of_fair": min(map(min, p.expert_load)) if p.expert_load else None,
        },
        "expert_load": [[round(x, 4) for x in layer] for layer in p.expert_load],
        "heldout_curve": p.heldout_curve,
        "curve": p.curve,
    }


def command(run: Run) -> str:
    """The command line that trains this run again."""
    parts = ["python -m runtime.train"]
    for values, default in ((run.options, TrainOptions()), (run.config, ModelConfig())):
        for name, value in asdict(values).items():
            if value != getattr(default, name) or name in ("steps", "seed", "threads"):
                parts.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(parts)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator torch finds, else the CPU."""
    if name != "auto":
        return torch.device(name)
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/train"), help="folder of the run (default: out/train)")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's resume.safetensors")
    parser.add_argument("--minutes", type=float, help="pause after so many minutes, saved; --resume goes on")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    for defaults in (TrainOptions(), ModelConfig()):
        for name, value in asdict(defaults).items():
            kind = int if value is None else type(value)
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"(default: {value})")
    return parser


def main(argv: list[str] | None = None) -> int:
    given = vars(arguments().parse_args(argv))
    try:
        options = TrainOptions(**{name: given[name] for name in asdict(TrainOptions())})
        config = ModelConfig(**{name: given[name] for name in asdict(ModelConfig())})
        if not given["resume"] and (given["out"] / "resume.safetensors").exists():
            raise TrainError(f"--out {given['out']}: holds a run; pass --resume to go on, or name another folder")
        run = start(config, options, given["out"], pick_device(given["device"]))
        if given["resume"]:
            resume(run)
    except (TrainError, ModelError, text.TextError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(f"{sum(p.numel() for p in run.model.parameters()):,} parameters; order-2: {run.baselines}")
    advance(run, given["minutes"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
