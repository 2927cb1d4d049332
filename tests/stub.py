"""python -m tests.stub: write sim/__init__.pyi, what an editor knows of `import sim`, from RunSpec and docstrings.

`tests/test_door.py` holds the two together.
"""

import inspect
import subprocess
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from analysis.api import offered, result, runs
from sim.spec import RunSpec

STUB = Path(__file__).parent.parent / "sim" / "__init__.pyi"
POLICIES = ("eviction", "prefetch", "miss", "rerank")
HEAD = '''"""What `import sim` offers (docs/python.md). Written by `python -m tests.stub`; not to be edited."""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, Literal, Protocol, TypeVar

import pandas as pd
import plotly.graph_objects as go

from analysis.api.result import Result as Result
from sim.catalog.engine_spec import Engine
from sim.catalog.hardware_spec import Hardware
from sim.catalog.model_spec import ModelSpec
from sim.fit.prediction import Prediction
from sim.steps import Steps
from traces.errors import UserError as UserError
from traces.format.trace import RoutingTrace

class Predicts(Protocol):
    def predict(self, trace: RoutingTrace, steps: Steps, /) -> Prediction | tuple[Any, ...]: ...

T = TypeVar("T")
Axis = T | Iterable[T | None]
File = str | PathLike[str]
Trace = File | RoutingTrace
Policy = str | Callable[..., Any] | Predicts
Table = Mapping[str, Any]
Run = Result | File

__version__: str
'''
TYPES: dict[str, str] = {
    "trace": "Trace",
    "calibration": "float | Trace | None",
    "model": "File | Table | ModelSpec | None",
    "hardware": "File | Table | Hardware",
    "engine": "File | Table | Engine",
    "set": "Mapping[str, float | int | str | bool] | None",
    "bulk_rows": "int | str | None",
    **dict.fromkeys(POLICIES, "Policy"),
}


def spelled(annotation: Any) -> str:
    """An annotation as it is written."""
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(spelled, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(annotation)))}]"
    return "None" if annotation is NoneType else str(annotation.__name__)


def parameters(axes: bool) -> str:
    """The fields of a run as parameters; axes: each may be a list."""
    out = []
    for name, field in RunSpec.model_fields.items():
        kind = TYPES.get(name) or spelled(field.annotation)
        if name == "set":
            kind, default = ("Mapping[str, Axis[float | int | str | bool]] | None" if axes else kind), "None"
        else:
            default = "None" if field.is_required() else repr(field.default)
        kind = f"Axis[{kind}]" if axes and name != "set" else kind
        out.append(f"{name}: {kind}{' | None' if field.is_required() else ''} = {default}")
    return ", ".join(out[1:] if not axes else out)


def text(made: Any) -> str:
    """The docstring, as source."""
    return '    """' + inspect.cleandoc(made.__doc__).replace("\n", "\n    ").replace("    \n", "\n") + '\n    """\n'


def stub() -> str:
    """The whole file, before it is laid out."""
    record = 'record: Literal["summary", "full"] = "summary"'
    many = f'{record}, errors: Literal["raise", "keep"] = "raise", {parameters(True)}'
    what = "results: pd.DataFrame | Run | Iterable[Run]"
    cases = "Mapping[str, Table]"
    return "".join(
        [
            HEAD,
            f'def simulate(trace: Trace | None = None, *, name: str = "", {record}, {parameters(False)}) -> Result:\n',
            text(runs.simulate),
            f"def simulate_many(cases: {cases} | None = None, /, *, {many}) -> pd.DataFrame:\n",
            text(runs.simulate_many),
            f"def compare({what} | {cases}, /, *, baseline: str | int = 0, seed: int = 0, **common: Any)",
            " -> pd.DataFrame:\n",
            text(offered.compare),
            f'def figure({what}, kind: str = "speed", **options: Any) -> go.Figure:\n',
            text(offered.figure),
            "def open_run(path: File) -> Result:\n",
            text(result.open_run),
        ]
    )


def main() -> None:
    laid_out = ["ruff", "format", "--stdin-filename", str(STUB), "-"]
    done = subprocess.run(laid_out, input=stub(), capture_output=True, text=True, check=True)
    STUB.write_text(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
