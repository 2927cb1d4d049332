"""python -m tests.blocked FOLDER: what commands and the API do where no library of an extra is installed, as JSON.

By name [exit status, lines on stdout, stderr]: of each command its --help, and of those that come to a library later
the calls below. All in one process, whose sys.modules say that the libraries are not there.
"""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXTRA_LIBRARIES = (
    "pandas", "plotly", "torch", "transformers", "pyarrow", "scipy", "marimo", "ray", "safetensors", "tokenizers",
    "nbformat", "lm_eval", "matplotlib", "gguf", "accelerate",
)  # fmt: skip


def blocked(folder: str) -> dict[str, list[str] | Callable[[], Any]]:
    """Calls by name: words of a command line, or what is done from Python."""
    run, trace, hardware = (f"{folder}/{name}" for name in ("run", "t.npz", "h.toml"))
    small = ["--hardware", hardware]
    return {
        "a run": ["run", "--trace", trace, *small, "--out", run],
        "a sweep": ["sweep", "--config", f"{folder}/sweep.toml", "--out", f"{folder}/sweep"],
        "a sweep on ray": ["sweep", "--config", f"{folder}/sweep.toml", "--engine", "ray", "--out", f"{folder}/sweep"],
        "rows of a sweep": ["compare", f"{folder}/results.parquet"],
        "a report": ["report", run, "--out", f"{folder}/report.html"],
        "a capture": ["traces", "capture", "--model", "tiny-moe", "--out", f"{folder}/c.npz"],
        "a Parquet file": [
            "traces",
            "convert",
            "--from",
            "parquet",
            f"{folder}/results.parquet",
            "o.npz",
            "--model",
            "m",
        ],
        "a .pt file": ["traces", "convert", "--from", "sglang", f"{folder}/x.pt", "o.npz", "--model", "deepseek-v3"],
        "a config.json": ["model", f"{folder}/config.json", f"{folder}/m.toml"],
        "miss-curve as text": ["miss-curve", trace, *small],
        "miss-curve as a page": ["miss-curve", trace, *small, "--out", f"{folder}/curve.html"],
        "api: simulate": lambda: _api().simulate(trace, hardware=hardware),
        "api: table": lambda: _api().open_run(run).table(),
        "api: save": lambda: _api().open_run(run).save(f"{folder}/again"),
        "api: to_frame": lambda: _api().open_run(run).to_frame(),
        "api: figure of a run": lambda: _api().open_run(run).figure("time"),
        "api: simulate_many": lambda: _api().simulate_many(trace=trace, hardware=hardware, cache=[2, 3]),
        "api: compare": lambda: _api().compare([run]),
        "api: figure": lambda: _api().figure([run], "time"),
        "api: capture": lambda: __import__("traces").capture("org/model", ["x"]),
        "api: capture by name": lambda: __import__("traces").capture("tiny-moe", ["x"]),
    }


def _api() -> Any:
    import sim

    return sim


def called(call: list[str] | Callable[[], Any]) -> list[Any]:
    """[exit status, lines on stdout, stderr]."""
    from sim.__main__ import main
    from traces.command import guarded

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["/bin/moe-offload-sim"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(call) if isinstance(call, list) else guarded(lambda _: print(call()), [])
        except SystemExit as end:
            status = int(end.code or 0)
    return [status, out.getvalue().count("\n"), err.getvalue()]


def run(folder: Path) -> dict[str, list[Any]]:
    import numpy as np

    from sim.__main__ import MODULES
    from tests.gen import random_trace
    from traces.format import npz

    trace = random_trace(np.random.default_rng(3), tokens=40, layers=2, experts=8, k=2, requests=4)
    npz.write(folder / "t.npz", trace)
    (folder / "h.toml").write_text("[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\n")
    (folder / "sweep.toml").write_text('trace = "mixtral.npz"\nmax_steps = 2\ncache = [2, 3]\n')
    (folder / "config.json").write_text("{}")
    for name in ("results.parquet", "x.pt"):
        (folder / name).write_bytes(b"PK\x05\x06" + bytes(18))
    helps = {name: called([name, "--help"]) for name in MODULES}
    return helps | {name: called(call) for name, call in blocked(str(folder)).items()}


if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(EXTRA_LIBRARIES))  # type: ignore[arg-type]  # None: as if it were not installed
    print(json.dumps(run(Path(sys.argv[1]))))
