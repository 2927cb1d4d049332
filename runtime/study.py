"""`python -m runtime.study`: what every miss and re-ranking policy costs in quality, against what it saves.

Each arm is a teacher-forced closed-loop run on the same text (layer by layer: `closed_loop.by_layer`), and beside it
the open-loop replay of the unmodified model's routing: how far a replay is off. Kept in `--out`:
closed_loop_MODEL.{json,csv,svg}, and closed_loop.md of all models that lie there. An arm that was run before, of the
same model, text and settings, is taken from `--parts`: a study that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.closed_loop import open_loop, study_report
from runtime.closed_loop.arms import LISTS, MATRIX, SEEDS, Arm, arms
from runtime.closed_loop.by_layer import LayerByLayer, forwarded
from runtime.closed_loop.evaluation import captured, means_on, shares
from runtime.closed_loop.expert_similarity import DecoderRuns, measure
from runtime.closed_loop.judged_model import Own, own_model
from runtime.closed_loop.mean_outputs import MeanOutputs
from runtime.closed_loop.passages import Passages
from runtime.closed_loop.priced_as import priced_as
from runtime.closed_loop.study_result import keep, read
from runtime.closed_loop.study_statistics import Study as Judged
from runtime.closed_loop.tasks import Task, copying, tasks_of
from runtime.closed_loop.text_windows import TextWindows, spelled, text_windows
from sim import __version__
from sim.fit import buddies_file
from sim.fit.buddies import from_similarity
from sim.flags import add_hardware, hardware_fields
from sim.outcome.closed_loop import FILE
from sim.outcome.summary import summarise
from sim.simulation import simulate
from sim.spec import RunSpec
from traces.command import Parser, guarded, out_folder, write_bytes
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.progress import counted, doing

CACHES = (0.75, 0.5, 0.375)
CHARGED = {"tiny-moe-8": "mixtral-8x7b"}  # whose sizes a model is charged for, where nobody says
PARTS = Path("out/study")
COPIES = 64  # windows in which a passage stands twice


@dataclass(frozen=True)
class Words:
    """Passages and the unmodified model's routing of them, as a replay has it."""

    passages: Passages
    routed: RoutingTrace


@dataclass(frozen=True)
class Study:
    """What all arms share. judged: what the figures are of; copies: passages that stand twice in a window; other: text
    on which policies are fitted, where the bracket of a replay is fitted too. files: what an arm's parameters may
    stand for."""

    model: Own
    judged: Words
    copies: Passages
    other: Words
    calibration: RoutingTrace
    common: dict[str, Any]
    charge: str
    files: dict[str, str]
    means: MeanOutputs
    weights: str

    def spec(self, arm: Arm, cache: float) -> RunSpec:
        return arm.spec(self.files, cache=cache, **self.common)

    def row(self, arm: Arm, cache: float) -> dict[str, Any]:
        """One arm's closed-loop figures, and how far its open-loop replay is from them."""
        begun, spec = time.process_time(), self.spec(arm, cache)
        made = self._closed(spec, self.judged.passages)
        made["tasks"] |= self._closed(spec, self.copies)["tasks"]
        made["open_loop"] = self._replayed(spec, self.judged.routed)
        if not arm.seed:  # further draws say nothing new of it
            fitted = self._closed(spec, self.other.passages)
            made["elsewhere"] = {**open_loop.figures(fitted), "open_loop": self._replayed(spec, self.other.routed)}
        about = {**asdict(arm), "params": {key: self._told(value) for key, value in arm.params.items()}}
        return {"cache": cache, "arm": about.pop("name"), **about, **made, "seconds": time.process_time() - begun}

    def _told(self, value: Any) -> Any:
        return "of the model" if value in self.files else value

    def _priced(self) -> Any:
        return priced_as(self.model.model, self.model.shape, self.charge)

    def _closed(self, spec: RunSpec, passages: Passages) -> dict[str, Any]:
        windows, length = passages.text.tokens.shape
        about = self.calibration, self._priced(), self.means
        loop = LayerByLayer(spec, self.model.shape, windows, length - 1, *about)
        made, record = passages.judged(self.model.model, loop), loop.record()
        reranked = loop.slots_reranked, loop.weight_reranked
        return {**made, "shares": shares(record, loop.trace(), reranked), **open_loop.costs(summarise(record))}

    def _replayed(self, spec: RunSpec, routed: RoutingTrace) -> dict[str, Any]:
        """The open-loop replay of the unmodified model's routing under the same policies."""
        again = spec.model_copy(update={"calibration": "captured"})
        summary, _ = simulate(again, trace=routed, calibration=self.calibration, model=self._priced())
        costs = open_loop.costs(summary)
        return {**costs["speed"], "counts": costs["counts"]}

    def key(self, arm: Arm, cache: float) -> str:
        """What the arm's row depends on, as a file name."""
        texts = (self.judged.passages, self.copies, self.other.passages)
        asked = [each.content for each in texts]
        calibration = npz.content_hash(self.calibration)
        facts = [__version__, self.weights, asked, calibration, asdict(arm), cache, self.common, self.charge]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


Asked = tuple[Arm, float]


def rows(study: Study, wanted: Sequence[Asked], parts: Path, workers: int) -> list[dict[str, Any]]:
    """A row for each arm and cache size; those that lie in `parts` are taken from there, others are put there, by so
    many processes."""
    paths = [parts / f"{study.key(*pair)}.json" for pair in wanted]
    missing = [(pair, path) for pair, path in zip(wanted, paths, strict=True) if not path.is_file()]
    parts.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("fork").Pool(workers, _of, (study,)) as pool:
        told = counted(missing, "arm", lambda each: f"{each[0][0].name} at {each[0][1]}")
        for _ in zip(told, pool.imap(_kept, missing), strict=True):
            pass
    return [json.loads(path.read_text()) for path in paths]


_STUDY: list[Study] = []  # of a process that makes rows


def _of(study: Study) -> None:
    torch.set_num_threads(1)
    _STUDY[:] = [study]


def _kept(asked: tuple[Asked, Path]) -> None:
    """Make a row and put it where it belongs."""
    pair, path = asked
    write_bytes(path, json.dumps(_STUDY[0].row(*pair)).encode())


def parser() -> Parser:
    out = Parser(prog="python -m runtime.study", description="Quality against bytes and time, policy by policy.")
    out.add_argument("--model", dest="judged_model", default="tiny-moe", metavar="tiny-moe|tiny-moe-8|FOLDER")
    out.add_argument("--sequences", type=int, metavar="N", help="windows that are judged (default: all there are)")
    out.add_argument("--length", type=int, metavar="M", help="tokens of a window (default: 256)")
    out.add_argument("--calibration-tokens", type=int, default=32768, metavar="N", help="default: 32768")
    out.add_argument(
        "--seeds", type=int, default=SEEDS, metavar="N", help=f"of every arm that draws (default: {SEEDS})"
    )
    add_hardware(out, "a100-pcie4")
    out.add_argument("--engine", default="fused")
    out.add_argument("--precision", default="q4")
    charge = "whose sizes are charged (default: a model of that grain)"
    out.add_argument("--charge", metavar="NAME|FILE", help=charge)
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--workers", type=int, default=1, metavar="N", help="processes, a thread each (default: 1)")
    out.add_argument("--quick", action="store_true", help="one cache size, and 4 windows of 64 unless told: a look")
    out.add_argument("--parts", type=Path, default=PARTS, metavar="DIR", help=f"rows that are done ({PARTS})")
    bracket = "run nothing: of the results in --out make closed_loop.toml there, how far any replay is off"
    out.add_argument("--bracket", metavar="DIR", help=bracket)
    out.add_argument("--out", metavar="DIR", help="write closed_loop_MODEL.{json,csv,svg} and closed_loop.md there")
    return out


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All arms; the result as closed_loop_MODEL.json has it. Raises UserError, one line, for bad input."""
    for name, least in (("sequences", 2), ("length", 16), ("calibration_tokens", 1), ("seeds", 1), ("workers", 1)):
        given = getattr(args, name)
        if given is not None and given < least:
            raise UserError(f"--{name.replace('_', '-')} is {given}; it must be at least {least}")
    model = own_model(args.judged_model)
    sequences = args.sequences or (4 if args.quick else None)
    length = args.length or (64 if args.quick else 256)
    if length > model.context:
        raise UserError(f"--length is {length}; the model has {model.context} positions")
    with tempfile.TemporaryDirectory() as folder:
        study = _study(args, model, sequences, length, Path(folder))
        caches = CACHES[1:2] if args.quick else CACHES
        every = arms(model.shape.top_k, model.shape.n_experts, args.seeds)
        found = rows(study, [(arm, cache) for cache in caches for arm in every], args.parts, args.workers)
    text = study.judged.passages.text
    windows = np.bincount(text.file, minlength=len(text.files))
    there = np.flatnonzero(windows)  # a file too short for a window has nothing to say
    return {
        "model": args.judged_model,
        "loop": "closed, teacher-forced, one window at a time, every token a decode step, cache carried on",
        "text": {
            "source": text.source,
            "windows": len(text.tokens),
            "length": length,
            "predicted_bytes": int(text.n_bytes.sum()),
            "available": len(text_windows(model.tokens, None, length, args.seed, lead=model.lead).tokens),
            "files": [text.files[place] for place in there],
            "windows_by_file": windows[there].tolist(),
        },
        "calibration_tokens": study.calibration.n_tokens,
        "settings": {**study.common, "charge": study.charge, "eviction": "lru", "prefetch": "none",
                     "placement": "first", "seeds": args.seeds},
        "seconds": sum(row["seconds"] for row in found),
        "rows": [_of_files(row, there.tolist()) for row in found],
        "version": __version__,
    }  # fmt: skip


def _of_files(row: dict[str, Any], there: Sequence[int]) -> dict[str, Any]:
    """The row with the sums of these files alone."""
    tasks = {name: {key: [sums[i] for i in there] for key, sums in task.items()} for name, task in row["tasks"].items()}
    return {**row, "sums": {key: [sums[i] for i in there] for key, sums in row["sums"].items()}, "tasks": tasks}


def _study(args: argparse.Namespace, model: Own, sequences: int | None, length: int, folder: Path) -> Study:
    few = args.quick
    common = {"trace": args.judged_model, **hardware_fields(args), "engine": args.engine, "precision": args.precision,
              "engine_as_costs": True, "seed": args.seed}  # fmt: skip
    doing("capturing a calibration trace")
    calibration = captured(model, min(args.calibration_tokens, 2048 if few else 10**9), args.seed, None)
    judged = text_windows(model.tokens, sequences, length, args.seed, lead=model.lead)
    other = text_windows(model.tokens, 4 if few else 96, length, args.seed, judged=False, lead=model.lead)
    doing("comparing the experts with each other")
    files = _files(model, args.judged_model, other, folder)
    means = means_on(model, other)
    doing("the unmodified model's guesses")
    words = [_words(model, text, common) for text in (judged, other)]
    twice, task = _copies(model, judged, 4 if few else COPIES)
    weights = hashlib.sha256((model.folder / "model.safetensors").read_bytes()).hexdigest()
    charge = args.charge or CHARGED.get(args.judged_model, "deepseek-v2-lite")
    copies = Passages.of(model.model, twice, [task])
    return Study(model, words[0], copies, words[1], calibration, common, charge, files, means, weights)


def _files(model: Own, name: str, text: TextWindows, folder: Path) -> dict[str, str]:
    """The model's similarity matrix, and buddy lists made of it, on text that is not judged."""
    matrix, lists = folder / "similarity.npz", folder / "lists.npz"
    similarity = measure(DecoderRuns(model.model, {"model": name, "data": text.source}), list(text.tokens[:32]))
    similarity.write(matrix)
    buddies_file.write(lists, from_similarity(buddies_file.read_similarity(matrix)[0]))
    return {MATRIX: str(matrix), LISTS: str(lists)}


def _copies(model: Own, text: TextWindows, n: int) -> tuple[TextWindows, Task]:
    """Windows in which what half of one holds stands twice."""
    chosen, half = slice(0, n), (text.tokens.shape[1] - 1) // 2
    windows, task = copying(text.tokens[chosen], model.model.config.vocab_size, model.lead, half)
    n_bytes = np.array([model.tokens.n_bytes(row[1:]) for row in windows.tolist()], np.int64)
    return TextWindows(windows, n_bytes, text.source, text.files, text.file[chosen]), task


def _words(model: Own, text: TextWindows, common: dict[str, Any]) -> Words:
    """The unmodified model's guesses, and its routing with its logits."""
    spec = RunSpec.of({**common, "miss": "next-ranked"})  # whoever ranks by logits keeps them
    (windows, length), vocabulary = text.tokens.shape, model.model.config.vocab_size
    run = LayerByLayer(spec, model.shape, windows, length - 1, None, priced_as(model.model, model.shape))
    forwarded(model.model, torch.from_numpy(text.tokens[:, :-1]), run.kept)
    return Words(Passages.of(model.model, text, tasks_of(spelled(model.tokens, vocabulary), text.tokens)), run.trace())


def _bracket(args: argparse.Namespace) -> str:
    """Write closed_loop.toml; returns it."""
    if not args.out:
        raise UserError("--bracket: is made of kept results; --out DIR, where they lie, is required")
    text = open_loop.toml([study.result for study in read(out_folder(args.out))])
    folder = out_folder(args.bracket)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / FILE.name, text.encode())
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    if args.bracket:
        print(_bracket(args), end="")
        return
    if args.out:
        out_folder(args.out)
    torch.set_num_threads(1)
    result = run(args)
    result = {"command": study_report.command_line(argv), **result}
    if args.out:
        keep(Path(args.out), result)
        print(study_report.write(Path(args.out)), end="")
    else:
        print(study_report.made([Judged(result)])["closed_loop.md"], end="")


if __name__ == "__main__":
    sys.exit(main())
