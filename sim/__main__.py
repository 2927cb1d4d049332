"""moe-offload-sim COMMAND ..., or python -m sim COMMAND ...: every command of the project by one name.

`moe-offload-sim run` is `python -m sim.run`. Modules are named here, not imported: most stand above this package, and
who asks for one waits for one (ARCHITECTURE.md, the door).
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from sim import __version__
from traces.command import SCRIPT, guarded
from traces.errors import UserError
from traces.extras import not_installed
from traces.slips import did_you_mean

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "simulate": {
        "run": ("sim.run", "simulate one run; lists of policies, models, hardware, engines"),
        "sweep": ("sim.sweep", "every configuration of a grid, on every core; killed, it goes on"),
        "recommend": ("sim.recommend", "what fits a GPU and is fastest, policies and engines"),
        "experiments": ("sim.experiments.__main__", "policies, engines, published speeds, papers' grids"),
    },
    "traces and what is learned from them": {
        "traces": ("traces.__main__", "look at, divide, import, generate, capture routing traces"),
        "profile": ("sim.profile", "BuddyMoE's offline profile of a trace"),
        "placement": ("sim.placement", "first residents as a file"),
        "residency": ("sim.residency", "whether a run hits what a recorded engine hit"),
        "model": ("sim.model", "what is known of a model, as a file"),
    },
    "look at runs": {
        "compare": ("analysis.compare", "runs side by side, with paired intervals"),
        "report": ("analysis.report", "runs as one HTML page"),
        "timeline": ("analysis.timeline", "a run for Perfetto, or as text"),
        "miss-curve": ("analysis.miss_curve", "hits and tokens/s at every cache size"),
        "against": ("analysis.against", "your own step or token times beside a run's, and which part may be wrong"),
        "notebook": ("analysis.notebook", "a notebook's findings as text, a page or a Jupyter notebook"),
        "policies": ("analysis.policies", "policies ranked over captures, as an SVG"),
        "engines": ("analysis.engines", "engines over link/host ratios, as an SVG"),
        "published": ("analysis.published", "predicted against published speeds, as an SVG"),
        "fit-generic": ("analysis.fit_generic", "how far the generic traces are off"),
    },
    "your own machine": {
        "calibrate-engine": ("sim.calibrate_engine", "fit an engine to timings that you have of it"),
        "calibrate": ("runtime.calibrate", "measure a device; write a hardware file"),
        "replay": ("runtime.replay", "replay a trace on a device, with the same policies"),
        "validate": ("runtime.validate", "how far the simulation is off on this device"),
        "gpu": ("runtime.gpu.__main__", "everything that a GPU can show, in one run"),
    },
    "with a model in the loop": {
        "live": ("runtime.live", "generate with a model whose experts are offloaded"),
        "evaluate": ("runtime.evaluate", "what a cache and its policies cost a model in quality"),
        "lm-eval": ("runtime.lm_eval_adapter", "tasks of lm-evaluation-harness with a cache in the loop"),
        "study": ("runtime.study", "quality against bytes and time, policy by policy"),
        "similarity": ("runtime.similarity", "how alike the experts of a layer are"),
        "substitutions": ("runtime.substitutions", "what one substitution costs, and what tells it"),
        "predictor": ("runtime.predictor", "learn a trace's lookahead from another trace"),
        "train": ("runtime.train", "train the small model"),
    },
}
MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of the command that it names."""
    words = list(sys.argv[1:] if argv is None else argv)
    me = SCRIPT if Path(sys.argv[0]).name != "__main__.py" else "python -m sim"
    if words[:1] in ([], ["-h"], ["--help"]):
        print(_help(me))
        return 0 if words else guarded(lambda _: _no_command(f"{me} run --trace mixtral.npz"), words)
    if words[0] in ABOUT:
        print(ABOUT[words[0]]())
        return 0
    name = words[0].replace("_", "-")
    missing = guarded(lambda _: _refuse(name, me), words)
    if missing:
        return missing
    sys.argv[:] = [f"{me} {name}", *words[1:]]  # usage and errors say what was typed (traces.command.typed)
    status: int = import_module(MODULES[name]).main(words[1:])
    return status


def where() -> str:
    """The folders of what is shipped beside the code."""
    here = Path(__file__).resolve().parent.parent
    docs = here / "docs" if (here / "docs" / "python.md").is_file() else here / "analysis" / "docs"  # a wheel's
    folders = {"samples": here / "traces" / "samples", "notebooks": here / "analysis" / "notebooks", "docs": docs}
    return "\n".join(f"{name:<10} {folder}" for name, folder in folders.items())


ABOUT = {"--version": lambda: f"{SCRIPT} {__version__}", "--where": where}


def of_package(package: str, example: str, words: Sequence[str]) -> None:
    """`python -m PACKAGE`, of one that has commands but is none: which there are, on stdout; then UserError."""
    known = {module.removesuffix(".__main__"): what for g in COMMANDS.values() for module, what in g.values()}
    for name, what in known.items():
        if name.startswith(f"{package}."):
            print(f"python -m {name:<24} {what}")
    if words and (meant := f"{package}.{words[0]}") in known:
        raise UserError(f"{words[0]}: did you mean python -m {' '.join([meant, *words[1:]])}?")
    _no_command(f"python -m {example}")


def _no_command(example: str) -> None:
    raise UserError(f"no command; one of these is required, such as: {example}")


def _refuse(name: str, me: str) -> None:
    """Raises UserError for a name that is no command, and where one lacks a library of an extra."""
    if name not in MODULES:
        raise UserError(f"{name}: no such command{did_you_mean(name, MODULES)}; {me} --help lists them")
    try:
        import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise not_installed(error, f"{me} {name}") from None


def _help(me: str) -> str:
    """Every command, a line each."""
    width = max(map(len, MODULES))
    lines = [f"usage: {me} COMMAND ...", "", "Simulate Mixture-of-Experts inference whose experts live in host memory."]
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}  {what}" for name, (_, what) in group.items())]
    more = f"{me} COMMAND --help says more; --where: where samples, notebooks and docs lie; --version"
    return "\n".join([*lines, "", more])


if __name__ == "__main__":
    sys.exit(main())
