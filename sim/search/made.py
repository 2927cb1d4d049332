"""A trace for whoever has none: the synthetic one of `python -m traces synth --like MODEL`, of a size that a search
answers in under a minute, in a folder of its own that is gone when the search is over."""

import contextlib
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim import catalog
from sim.errors import CatalogError, SpecError
from traces.format import npz
from traces.generic import LRU_OFF, find, synthesise
from traces.progress import doing
from traces.synthetic import PRESETS

REQUESTS, PROMPT, GENERATED = 12, 256, 48  # nine are judged; prompts pass every engine's threshold of 32 rows
GENERIC = (
    "GENERIC SYNTHETIC TRACE: made from the shape of {model}, not from its routing. Of five captured models such "
    "traces were off by {mean:.2f} in LRU hit rate on average, {most:.2f} at most: speeds that hang on hits are off "
    "likewise, those of whole layers hardly; --trace FILE judges on the model's own routing"
)
FITTED = (
    "FITTED SYNTHETIC TRACE: made to match what is published of the routing of {model}, not captured from it; --trace "
    "FILE judges on the model's own routing"
)


@dataclass(frozen=True)
class Made:
    """path: where it lies meanwhile; name: what the commands that are printed call it; command: which makes it; said:
    what must not be missed of it; generic: nothing of it is the model's own but its shape."""

    path: str
    name: str
    command: str
    said: str
    generic: bool

    def named(self, value: Any) -> Any:
        """The same with the name in place of the path, which is nobody's business."""
        if isinstance(value, str):
            return value.replace(self.path, self.name)
        if isinstance(value, Mapping):
            return {key: self.named(each) for key, each in value.items()}
        return [self.named(each) for each in value] if isinstance(value, list | tuple) else value

    def told(self, out: Mapping[str, Any]) -> dict[str, Any]:
        """The object of a recommendation, with where its trace is from: `made`, and first of its notes."""
        facts = {"trace": self.name, "command": self.command, "generic": self.generic, "said": self.said}
        found: dict[str, Any] = self.named(out)
        return found | {"made": facts, "notes": [self.said, *found["notes"]]}


@contextlib.contextmanager
def made(like: str, seed: int) -> Iterator[Made]:
    """The trace of a model, by its name in the catalog or its file. Raises CatalogError for what is no model."""
    try:
        model = catalog.model(like)
    except CatalogError as error:
        raise SpecError(f"model: {error}") from None
    known = find(like)
    if known is None:  # an entry of the simulator's catalog under a spelling that only it knows
        known = model.name
    said = FITTED if known in PRESETS else GENERIC
    name = f"{model.name}-synthetic.npz"
    lengths = {"requests": REQUESTS, "prompt": PROMPT, "generated": GENERATED}
    doing(f"making a synthetic trace of {model.name}")
    trace = synthesise(known, seed, REQUESTS, prompt=PROMPT, generated=GENERATED)
    flags = [word for key, value in lengths.items() for word in (f"--{key}", str(value))]
    words = ["python", "-m", "traces", "synth", "--like", known, *flags, *(["--seed", str(seed)] if seed else [])]
    with tempfile.TemporaryDirectory(prefix="recommend-") as folder:
        path = Path(folder) / name
        npz.write(path, trace)
        told = said.format(model=model.name, mean=LRU_OFF[0], most=LRU_OFF[1])
        yield Made(str(path), name, shlex.join([*words, "--out", name]), told, said is GENERIC)
