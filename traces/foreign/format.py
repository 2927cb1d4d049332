"""What a module of `formats` says of itself: a Reader, a Writer, or both (see traces.foreign.registry)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.foreign.ask import Ask
from traces.foreign.models import Model
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace

COUNTED = (RoutingTrace, Profile)  # sources of counts
SHAPE = ("n_experts", "top_k", "n_layers", "moe_layers")
PROMPTS = (*SHAPE, "phase", "prompt_tokens", "prompt_start")
PASSES = (*PROMPTS, "requests")


@dataclass(frozen=True)
class Reader:
    """name: of --from. read: path and flags to a trace or a profile. detect: whether a path looks like it, without
    trusting it. doc: of the file, for people. flags: of traces.foreign.ask, that it takes. fits: whether what is known
    of the model allows what `detect` takes a path for, asked where it could be something else. could_be: what else, in
    words and by a flag, its content could be of that model; "": nothing that is read. names_model: the file
    names its model, so that --model may be left out (Ask.model.name is "" then). exact: a trace of ours, kept as it
    is."""

    name: str
    read: Callable[[Path, Ask], RoutingTrace | Profile]
    detect: Callable[[Path], bool]
    doc: str
    flags: tuple[str, ...] = SHAPE
    fits: Callable[[Path, Model], bool] = lambda path, model: True
    could_be: Callable[[Path, Model], str] = lambda path, model: ""
    names_model: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Writer:
    """name: of --to. write: a source and a path to what was written, in words. doc: of the file, for people.
    takes: kinds of source."""

    name: str
    write: Callable[[Any, Path], str]
    doc: str
    takes: tuple[type, ...] = (RoutingTrace,)
