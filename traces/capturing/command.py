"""`python -m traces capture`: prompts in, a model run under the recorder, a trace out. torch comes with the model."""

import argparse
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from traces.command import Parser, add_force
from traces.errors import UserError
from traces.extras import not_installed
from traces.format import npz
from traces.format.groups import groups
from traces.format.trace import RoutingTrace, hash64
from traces.progress import doing

Ids = npt.NDArray[np.int64]

# Models of this project by name, as `module:class` of a Source. Named, not imported: their room builds on this one.
OWN = dict.fromkeys(("tiny-moe", "tiny-moe-8"), "runtime.small_model.capture_source:TinyMoe")
NAMES = ", ".join(OWN)
HUGGING_FACE = "traces.capturing.hf:HuggingFace"


class Source(Protocol):
    """A model that can be run, with its tokenizer.

    model: the module to record. meta: what it adds to a trace's meta. context: tokens that a request may have; None:
    not known.
    """

    model: Any
    meta: dict[str, Any]
    context: int | None

    def heldout(self) -> list[Ids]:
        """Token ids of each text to take prompts from where the user names none. UserError where it has none."""
        ...

    def encode(self, text: str) -> Ids:
        """Token ids of a text."""
        ...

    def run(self, recorder: Any, prompts: Ids, generate: int, temperature: float, seed: int, first: int) -> None:
        """Open the recorder and generate `generate` tokens after each prompt [B, P]; 0: the prompts alone.

        Temperature 0 takes the likeliest token. first: the number of the first prompt, which seeds its sampling.
        """
        ...


def add_arguments(command: Parser) -> None:
    """The flags of `capture`."""
    command.add_argument("--model", required=True, metavar="NAME|PATH", help=f"{NAMES}, or a Hugging Face model")
    command.add_argument("--out", metavar="FILE", help="the trace to write (default: MODEL-capture.npz)")
    add_force(command)
    command.add_argument("--text", nargs="+", metavar="FILE", help=f"prompts from these ({NAMES}: held-out text)")
    command.add_argument("--prompts-from", metavar="TRACE", help="the prompts of a trace that holds token_ids")
    command.add_argument("--requests", type=_count, metavar="N", help="default 16; all with --prompts-from")
    command.add_argument("--skip", type=_count, default=0, metavar="N", help="leave out the first N prompts")
    command.add_argument("--prompt-tokens", type=_count, default=64, metavar="P", help="tokens of a prompt (64)")
    command.add_argument("--generate", type=_count, default=64, metavar="G", help="tokens generated after each (64)")
    command.add_argument("--batch", type=_count, default=8, metavar="B", help="requests that run together (8)")
    command.add_argument(
        "--temperature", type=_temperature, default=1.0, metavar="T", help="0: the likeliest token (1)"
    )
    command.add_argument("--seed", type=_count, default=0, help="which prompts, and sampling (0)")
    command.add_argument("--lookahead", type=_count, default=3, metavar="D", help="distances 1 to D; 0: none (3)")
    command.add_argument("--no-logits", action="store_true", help="leave the raw router logits out")
    command.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ... (auto)")
    command.add_argument("--name", metavar="NAME", help="the model's name in the trace (default: its own)")
    command.add_argument("--licence", metavar="TEXT", help="of the captured text; kept in the trace")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 <= value < np.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no temperature; a number from 0 up is required")
    return value


def run(options: argparse.Namespace) -> RoutingTrace:
    """What the flags ask for, as a trace. Raises UserError, one line."""
    if options.text and options.prompts_from:
        raise UserError("--text and --prompts-from both give prompts; one of them is required")
    if min(options.batch, options.prompt_tokens) < 1 or options.requests == 0:
        raise UserError("--batch, --prompt-tokens and --requests are at least 1")
    doing(f"opening {options.model}", at_once=False)
    source = open_source(options.model, options.device)
    if not options.prompts_from:
        _refuse_too_long(source, options.prompt_tokens + options.generate)
    prompts, about = _prompts(options, source)
    _refuse_too_long(source, max(len(p) for p in prompts) + options.generate)
    from traces.capturing.recorder import Recorder  # torch: the model has brought it

    recorder = Recorder(source.model, not options.no_logits, options.lookahead)
    for first, rows in batches(prompts, options.batch):
        source.run(recorder, np.stack(rows), options.generate, options.temperature, options.seed, first + options.skip)
        doing(f"captured {first + len(rows)} of {len(prompts)} requests")
    own = {"model": options.name, "licence": options.licence}
    asked = {name: getattr(options, name) for name in ("seed", "skip", "generate", "batch", "temperature")}
    capture = {**source.meta.get("capture", {}), **asked, "requests": len(prompts)}
    meta = source.meta | about | {k: v for k, v in own.items() if v is not None} | {"capture": capture}
    return recorder.trace(**meta)


def _refuse_too_long(source: Source, tokens: int) -> None:
    if source.context is not None and tokens > source.context:
        raise UserError(f"{tokens} tokens of prompt and --generate; the model's context is {source.context}")


def open_source(name: str, device: str) -> Source:
    """The model of that name, loaded. Raises UserError where it, or what loads it, is not there."""
    module, _, attribute = OWN.get(name, HUGGING_FACE).partition(":")
    try:
        made: Source = getattr(import_module(module), attribute)(name, device)
    except ModuleNotFoundError as error:
        raise not_installed(error, "capture", "train" if name in OWN else "hf") from error
    return made


def facts_of_config(path: str) -> dict[str, Any]:
    """What the model of a Hugging Face config.json is (`traces.capturing.facts`). Raises UserError, one line."""
    try:
        facts: dict[str, Any] = import_module(HUGGING_FACE.partition(":")[0]).facts_of_config(path)
    except ModuleNotFoundError as error:
        raise not_installed(error, "a config.json", "hf") from error
    return facts


def _prompts(options: argparse.Namespace, source: Source) -> tuple[list[Ids], dict[str, Any]]:
    """Token ids of each request's prompt, and what the trace says of where they come from."""
    about: dict[str, Any] = {}
    of: dict[str, list[str]] = {}
    streams: list[Ids] = []
    if options.prompts_from:
        path = npz.find(options.prompts_from)
        trace = npz.read(path)
        found = prompts_of(trace, path.name)
        about = {name: trace.meta[name] for name in ("data", "licence") if name in trace.meta}
        of = groups(trace)
    elif options.text:
        texts, names = [_read(Path(name)) for name in options.text], [Path(name).name for name in options.text]
        streams = [source.encode(text) for text in texts]
        drawn = _windows(streams, options.prompt_tokens, options.generate, options.seed)
        found, of = [window for _, window in drawn], {"text": [names[n] for n, _ in drawn]}
        about = {"data": ", ".join(names)}
    else:
        streams = source.heldout()
        found = windows(streams, options.prompt_tokens, options.generate, options.seed)
    wanted = options.requests or (len(found) if options.prompts_from else 16)
    chosen = found[options.skip : options.skip + wanted]
    if len(chosen) < wanted or not chosen:
        have = f"--requests {wanted} after --skip {options.skip}: {len(found)} prompts are there"
        would = _would_do(options, [len(s) for s in streams], len(chosen), wanted + options.skip)
        raise UserError(f"{have}; {would} would do")
    if of:
        about["groups"] = {key: words[options.skip : options.skip + wanted] for key, words in of.items()}
    return chosen, about


def _would_do(options: argparse.Namespace, lengths: list[int], left: int, needed: int) -> str:
    """What would give as many prompts as are needed, the skipped ones too; lengths: tokens of each text, if any."""
    prompt, generate = options.prompt_tokens, options.generate
    ways = [f"--requests {left}"] if left else []
    if not lengths:
        return ways[0] if ways else "a smaller --skip"
    fits = {
        "--prompt-tokens": _largest(1, prompt, lambda n: _prompts_in(lengths, n, generate) >= needed),
        "--generate": _largest(0, generate, lambda n: _prompts_in(lengths, prompt, n) >= needed),
    }
    ways += [f"{flag} {n}" for flag, n in fits.items() if n is not None]
    missing = needed - _prompts_in(lengths, prompt, generate)
    more = min(_tokens_for(_prompts_in([n], prompt, generate) + missing, prompt, generate) - n for n in lengths)
    return f"{', '.join(ways)}{', ' if ways else ''}or {more:,} more tokens of text".removeprefix("or ")


def _largest(least: int, below: int, enough: Callable[[int], bool]) -> int | None:
    """The largest number in [least, below) that is enough, if any; fewer tokens never give fewer prompts."""
    found = bisect_left(range(least, below), True, key=lambda n: not enough(n))
    return least + found - 1 if found else None


def _prompts_in(lengths: list[int], prompt: int, generate: int) -> int:
    """How many prompts texts of so many tokens give (`_windows`)."""
    return sum(max(0, (n - prompt) // (prompt + generate) + 1) for n in lengths)


def _tokens_for(prompts: int, prompt: int, generate: int) -> int:
    """Tokens that a text must have for so many prompts; the last one's continuation need not be there."""
    return prompts * (prompt + generate) - generate


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error.reason} at byte {error.start}; text in UTF-8 is required") from error


def windows(streams: Sequence[Ids], prompt: int, generate: int, seed: int) -> list[Ids]:
    """Prompts of `prompt` tokens from token streams, in an order that `seed` shuffles.

    Each is followed in its text by `generate` tokens that are in no other prompt, or by the text's end.
    """
    return [window for _, window in _windows(streams, prompt, generate, seed)]


def _windows(streams: Sequence[Ids], prompt: int, generate: int, seed: int) -> list[tuple[int, Ids]]:
    """The same, each with the number of its stream."""
    every = [(n, s, range(0, len(s) - prompt + 1, prompt + generate)) for n, s in enumerate(streams)]
    found = [(n, s[i : i + prompt]) for n, s, places in every for i in places]
    order = np.argsort(hash64(seed, np.arange(len(found)), 0), kind="stable")
    return [found[i] for i in order]


def prompts_of(trace: RoutingTrace, name: str) -> list[Ids]:
    """The prompt of each request of a trace. Raises UserError where it does not hold them, or not from the start."""
    if trace.token_ids is None:
        raise UserError(f"{name}: has no token_ids, so its prompts are not known")
    out = []
    for first, last in zip(*trace.requests(), strict=True):
        prompt = trace.token_ids[first:last][trace.prefill[first:last]]
        if trace.position[first] or not len(prompt):
            raise UserError(f"{name}: request {trace.sequence[first]} does not begin with its prompt's first token")
        out.append(prompt.astype(np.int64))
    return out


def batches(prompts: Sequence[Ids], size: int) -> Iterator[tuple[int, list[Ids]]]:
    """(number of the first, prompts): up to `size` neighbours of equal length, so that none is padded."""
    first = 0
    while first < len(prompts):
        last = first
        while last < min(first + size, len(prompts)) and len(prompts[last]) == len(prompts[first]):
            last += 1
        yield first, list(prompts[first:last])
        first = last
