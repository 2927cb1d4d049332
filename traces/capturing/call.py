"""`traces.capture`: the recorder from Python, open around a model's own code, or one call from prompts to a trace."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from traces.capturing.command import NAMES, Ids, batches, open_source
from traces.errors import UserError
from traces.extras import needed
from traces.format.trace import RoutingTrace
from traces.progress import doing

if TYPE_CHECKING:
    from traces.capturing.recorder import Recorder

CAPTURE = "capture"


def capture(
    model: Any,
    prompts: Iterable[Any] | None = None,
    *,
    tokenizer: Any = None,
    generate: int = 64,
    batch: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    logits: bool = True,
    lookahead: int = 3,
    device: str = "auto",
    name: str = "",
    **meta: Any,
) -> "Recorder | RoutingTrace":
    """The routing of a live model, as a trace; docs/models.md says which models.

        trace = traces.capture(model, ["Once upon a time"], tokenizer=tokenizer, generate=100)

        with traces.capture(model) as recorder:         # around code of your own
            model.generate(**inputs, max_new_tokens=100)
        trace = recorder.trace(licence="...")

    model: a torch module, Hugging Face's or another whose experts are 3-D parameters; or the name of a Hugging Face
    model, or tiny-moe, or tiny-moe-8. prompts: texts, or token ids (a sequence of whole numbers each); None: a
    recorder, to be opened with `with`. tokenizer: of texts; a named model brings its own. generate: tokens after each
    prompt, 0: the prompts alone; batch: prompts of one length that run together; temperature 0: the likeliest token;
    seed: of sampling. logits: keep the raw router logits. lookahead: distances 1 .. lookahead, 0: none. device: of a
    named model. name: the model's in the trace; meta: more that the trace says (`licence="..."`). Needs torch, and for
    prompts transformers. Raises UserError, one line.
    """
    _refuse_no_model(model)
    _refuse_no_number(lookahead=lookahead, generate=generate, batch=batch, seed=seed)
    if prompts is None and not isinstance(model, str):
        return _recorder(model, logits, lookahead)
    if not isinstance(prompts, Iterable | None) or isinstance(prompts, Mapping | bytes):
        raise UserError(f"capture: prompts: {prompts!r}: must be texts, or token ids of each")
    if not isinstance(temperature, int | float) or min(generate, lookahead, batch - 1, temperature) < 0:
        raise UserError("capture: generate, lookahead and temperature are at least 0, batch at least 1")
    source: Any = open_source(model, device) if isinstance(model, str) else _loaded(model, tokenizer)
    recorder = _recorder(source.model, logits, lookahead)
    if prompts is None:
        return recorder
    rows = [_ids(source, n, each) for n, each in enumerate([prompts] if isinstance(prompts, str) else prompts)]
    asked = {"generate": generate, "batch": batch, "temperature": temperature, "seed": seed, "requests": len(rows)}
    _refuse(rows, generate, source.context)
    training = source.model.training
    source.model.eval()
    try:
        for first, some in batches(rows, batch):
            doing(f"capturing request {first + 1} of {len(rows)}")
            source.run(recorder, np.stack(some), generate, temperature, seed, first)
    finally:
        source.model.train(training)
    said = source.meta | {"capture": source.meta.get("capture", {}) | asked} | ({"model": name} if name else {})
    return recorder.trace(**(said | meta))


def _refuse_no_model(model: Any) -> None:
    if not isinstance(model, str) and (isinstance(model, type) or not hasattr(model, "named_modules")):
        right = f"a torch module, or the name of a Hugging Face model, or one of {NAMES}"
        raise UserError(f"capture: model: {type(model).__name__}: must be {right}")


def _refuse_no_number(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, int | np.integer):
            raise UserError(f"capture: {name}: {value!r}: must be a whole number")


def _recorder(model: Any, logits: bool, lookahead: int) -> "Recorder":
    made: Recorder = needed("traces.capturing.recorder", CAPTURE, "hf").Recorder(model, logits, lookahead)
    return made


def _loaded(model: Any, tokenizer: Any) -> Any:
    return needed("traces.capturing.hf", CAPTURE, "hf").Loaded(model, tokenizer)


def _ids(source: Any, number: int, prompt: Any) -> Ids:
    """Token ids of a prompt. Raises UserError for what is neither text nor whole numbers."""
    found = source.encode(prompt) if isinstance(prompt, str) else np.asarray(prompt)
    if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        raise UserError(f"capture: prompt {number}: must be text, or a sequence of token ids with at least one")
    words = getattr(source, "vocabulary", None)
    if found.min() < 0 or (words is not None and found.max() >= words):
        wrong = f"{found.min()} .. {found.max()}; the model has {words or 'no negative'} token ids"
        raise UserError(f"capture: prompt {number}: token ids {wrong}")
    return found.astype(np.int64)


def _refuse(rows: Sequence[Ids], generate: int, context: int | None) -> None:
    if not rows:
        raise UserError("capture: no prompts; at least one is required")
    longest = max(map(len, rows)) + generate
    if context is not None and longest > context:
        raise UserError(
            f"capture: {longest} tokens of prompt and generate={generate}; the model's context is {context}"
        )
