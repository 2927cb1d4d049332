"""`python -m runtime.train`: train the decoder of `runtime.small_model.model` on the standard library's sources.

Seeded and resumable: a step's data and learning rate follow from its number and the seed alone, so a run that
was paused (`--minutes`) and taken up again (`--resume`) makes the very steps of one that never stopped; on
the CPU with the same `--threads` it gives the same weights, on an accelerator the same up to the order of its
sums. The folder `--out` holds a usable state from the first save on: `model.safetensors` (float16),
`config.json`, `tokenizer.json`, `record.json` and, to go on from, `resume.safetensors` (float32 weights and
both moments of AdamW).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

from runtime.small_model import text
from runtime.small_model.heldout import evaluate, share_of_fair
from runtime.small_model.model import ModelConfig, MoeDecoder, read_tensors, save_checkpoint
from runtime.small_model.optimise import TrainOptions, batch_at, make_optimizer, train_step
from traces.capturing.inputs import pick_device
from traces.command import Parser, guarded, write_bytes
from traces.errors import UserError
from traces.progress import doing

RECORD_VERSION = 1
CURVE_EVERY = 50
EVALUATIONS = 20
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """How far a run is.

    `curve` rows: step, training nats per token, balance loss (means since the row before); `heldout_curve`
    rows: step, bits per byte; `expert_load` at the last of them: `[layers][experts]`, 1.0 = a fair share.
    """

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
    """Read, learn the vocabulary from the training files, encode."""
    corpus = text.read_corpus(limit_bytes=corpus_bytes)
    tokenizer = text.train_tokenizer(corpus.train, vocab_size)
    train, heldout = (text.encode(tokenizer, part) for part in (corpus.train, corpus.heldout))
    return Data(corpus, tokenizer, train, heldout)


@dataclass
class Training:
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

    @property
    def tokens_seen(self) -> int:
        return self.progress.step * self.options.batch * self.config.max_position_embeddings


def start(config: ModelConfig, options: TrainOptions, out: Path, device: torch.device) -> Training:
    """A run at step 0, nothing written yet."""
    torch.set_num_threads(options.threads)
    data = prepare(config.vocab_size, options.corpus_bytes)
    config = replace(config, vocab_size=data.tokenizer.get_vocab_size())
    model = MoeDecoder(config, options.seed).to(device)
    baselines = {
        "order2_bytes": text.order2_bits_per_byte(data.corpus),
        "order2_tokens": text.order2_token_bits_per_byte(data.corpus, data.tokenizer),
    }
    return Training(config, options, out, data, model, make_optimizer(model, options), baselines)


def advance(run: Training, minutes: float | None = None, save_every_s: float = 300.0) -> None:
    """Train to the end, or until `minutes` have passed; evaluate twenty times on the way; save as it goes.

    Looks up from training every 50 steps only, so that where it is paused leaves no mark on its curves. A run
    that was finished already is only written out again.
    """
    if run.finished:
        save_run(run)
    begun = saved = time.monotonic()
    before = run.progress.seconds
    sums = torch.zeros(2, device=run.device)
    while not run.finished:
        doing(f"step {run.progress.step + 1:,} of {run.options.steps:,}", at_once=False)
        sums += _one_step(run)
        if run.progress.step % CURVE_EVERY and not run.finished:
            continue
        now = time.monotonic()
        run.progress.seconds = before + now - begun
        _add_to_curve(run, sums)
        sums.zero_()
        paused = minutes is not None and now - begun > 60 * minutes
        if evaluated := _evaluation_due(run):
            _evaluate(run)
        if paused or evaluated or now - saved > save_every_s:
            save_run(run)
            saved = now
        if paused:
            return


def _one_step(run: Training) -> Tensor:
    windows = batch_at(run.data.train, run.progress.step, run.options, run.config.max_position_embeddings)
    nats, balance = train_step(run.model, run.optimizer, windows.to(run.device), run.progress.step, run.options)
    run.progress.step += 1
    return torch.stack((nats, balance))


def _add_to_curve(run: Training, sums: Tensor) -> None:
    p = run.progress
    last = p.curve[-1][0] if p.curve else 0
    nats, balance = (sums / (p.step - last)).tolist()
    if not math.isfinite(nats):
        raise UserError(f"step {p.step}: the training loss is {nats}; try a lower --learning-rate")
    p.curve.append([p.step, round(nats, 4), round(balance, 4)])
    minutes_left = (run.options.steps - p.step) * p.seconds / p.step / 60
    speed = f"{run.tokens_seen / p.seconds:.0f} tokens/s  {minutes_left:.0f} min left"
    say(f"step {p.step}/{run.options.steps}  {nats:.3f} nats/token  balance {balance:.3f}  {speed}")


def _evaluation_due(run: Training) -> bool:
    return run.finished or run.progress.step % max(1, run.options.steps // EVALUATIONS) < CURVE_EVERY


def _evaluate(run: Training) -> None:
    bits, counts = evaluate(run.model, run.data.heldout, run.data.heldout_bytes)
    run.progress.heldout_curve.append([run.progress.step, round(bits, 4)])
    run.progress.expert_load = share_of_fair(counts)
    least = min(map(min, run.progress.expert_load))
    ratio = bits / run.baselines["order2_bytes"]
    say(f"held out: {bits:.4f} bits/byte, {ratio:.3f} x order-2; least expert {least:.2f} of its fair share")


def save_run(run: Training) -> None:
    """Everything in `run.out`; the resume file last, so that it is never ahead of the others."""
    run.out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(run.out, run.model)
    write_bytes(run.out / "tokenizer.json", run.data.tokenizer.to_str().encode())
    write_bytes(run.out / "record.json", (json.dumps(record(run), indent=1) + "\n").encode())
    meta = {"identity": identity(run), "progress": json.dumps(asdict(run.progress))}
    write_bytes(run.out / "resume.safetensors", save(_state_tensors(run), meta))


def identity(run: Training) -> str:
    """What two runs must share for one to go on from the other, as a JSON string."""
    data = run.data.corpus.describe()["sha256"]
    return json.dumps({"config": asdict(run.config), "options": asdict(run.options), "data": data}, sort_keys=True)


def _state_tensors(run: Training) -> dict[str, Tensor]:
    tensors = {}
    for name, p in run.model.named_parameters():
        tensors[f"weight.{name}"] = p.detach().cpu().contiguous()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = run.optimizer.state[p][moment].cpu().contiguous()
    return tensors


def resume(run: Training) -> None:
    """Put `run` where `resume.safetensors` of its folder left off; UserError where that is another run's."""
    path = run.out / "resume.safetensors"
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        meta = file.metadata() or {}
    if meta.get("identity") != identity(run):
        raise UserError(f"{path}: is of {meta.get('identity')}; it must be of this run, {identity(run)}")
    run.progress = Progress(**json.loads(meta["progress"]))
    for name, p in run.model.named_parameters():
        p.data.copy_(tensors[f"weight.{name}"])
        moments = {m: tensors[f"{m}.{name}"].to(p.device) for m in MOMENTS}
        run.optimizer.state[p] = {"step": torch.tensor(float(run.progress.step), device=p.device), **moments}


def record(run: Training) -> dict[str, Any]:
    """What `record.json` says: enough to train again and to judge the result."""
    p = run.progress
    return {
        "format_version": RECORD_VERSION,
        "command": command(run),
        "options": asdict(run.options),
        "config": asdict(run.config),
        "parameters": sum(q.numel() for q in run.model.parameters()),
        "data": run.data.corpus.describe(),
        "tokenizer": {
            "sha256": hashlib.sha256(run.data.tokenizer.to_str().encode()).hexdigest(),
            "heldout_bytes_per_token": run.data.heldout_bytes / len(run.data.heldout),
        },
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(run.device),
        },
        "steps_done": p.step,
        "finished": run.finished,
        "tokens_seen": run.tokens_seen,
        "epochs": round(run.tokens_seen / len(run.data.train), 3),
        "seconds": round(p.seconds, 1),
        "heldout": _judgement(run),
        "expert_load": p.expert_load,
        "heldout_curve": p.heldout_curve,
        "curve": p.curve,
    }


def _judgement(run: Training) -> dict[str, Any]:
    """The last evaluation beside the order-2 models; empty before the first."""
    if not run.progress.heldout_curve:
        return {}
    step, bits = run.progress.heldout_curve[-1]
    return {
        "bits_per_byte": bits,
        "at_step": step,
        "order2": run.baselines,
        "order2_model": "two symbols of context, interpolated Witten-Bell, fitted on the training files",
        "ratio_to_order2_bytes": round(bits / run.baselines["order2_bytes"], 4),
        "least_expert_share_of_fair": min(map(min, run.progress.expert_load)),
    }


def command(run: Training) -> str:
    """The command line that trains this run again."""
    parts = ["python -m runtime.train"]
    for values, default in ((run.options, TrainOptions()), (run.config, ModelConfig())):
        for name, value in asdict(values).items():
            if value != getattr(default, name) or name in ("steps", "seed", "threads"):
                parts.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(parts)


def say(line: str) -> None:
    """One line of the log: a training of hours is watched through a file as often as on a terminal."""
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.ArgumentParser:
    about = (__doc__ or "").partition("\n")[0]
    parser = Parser(prog="python -m runtime.train", description=about)
    parser.add_argument("--out", type=Path, default=Path("out/train"), help="the run's folder (out/train)")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's resume.safetensors")
    parser.add_argument("--minutes", type=float, help="pause after so many minutes, saved; --resume goes on")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (auto)")
    for defaults in (TrainOptions(), ModelConfig()):
        for name, value in asdict(defaults).items():
            kind = int if value is None else type(value)
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"({value})")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done or paused, 2 what was asked for cannot be done."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    given = vars(arguments().parse_args(argv))
    options = TrainOptions(**{name: given[name] for name in asdict(TrainOptions())})
    config = ModelConfig(**{name: given[name] for name in asdict(ModelConfig())})
    if not given["resume"] and (given["out"] / "resume.safetensors").exists():
        raise UserError(f"--out {given['out']} holds a run; go on with --resume, or name another folder")
    doing("reading text, fitting a tokenizer and the order-2 models")
    run = start(config, options, given["out"], pick_device(given["device"]))
    if given["resume"]:
        resume(run)
    say(f"{sum(p.numel() for p in run.model.parameters()):,} parameters; order-2: {run.baselines}")
    advance(run, given["minutes"])


if __name__ == "__main__":
    sys.exit(main())
