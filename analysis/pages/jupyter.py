"""A notebook as a Jupyter notebook with its outputs: marimo's own export, its figures in a form that Jupyter draws."""

import json
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from traces.errors import UserError

PLOTLY = "application/vnd.plotly.v1+json"


def exported(path: Path, trace: str | None) -> bytes:
    """The .ipynb file. trace: written into it as TRACE. Raises UserError where a cell fails."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.ipynb"
        words = ["export", "ipynb", str(path.absolute()), "--include-outputs", "-o", str(made)]
        words += ["--", "--trace", trace] if trace else []
        done = subprocess.run([sys.executable, "-m", "marimo", *words], capture_output=True, text=True)
        if done.returncode and made.is_file() and (told := _refused(json.loads(made.read_text()))):
            raise UserError(told)
        if done.returncode or not made.is_file():
            raise UserError(f"{path}: marimo does not export it: {(done.stderr or done.stdout).strip()[-400:]}")
        return json.dumps(adapted(json.loads(made.read_text()), trace), indent=1).encode()


def _refused(notebook: dict[str, Any]) -> str:
    """What a cell of it raised as bad input; "" where none did."""
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", []))
    return next((str(output["evalue"]) for output in outputs if output.get("ename") == UserError.__name__), "")


def adapted(notebook: dict[str, Any], trace: str | None) -> dict[str, Any]:
    """With figures as plotly's JSON, and TRACE as it was."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            figure = _figure("".join(output.get("data", {}).get("text/html", "")))
            output["data"] = {PLOTLY: figure} if figure else output.get("data", {})
        if trace and "".join(cell["source"]).startswith("TRACE = "):
            cell["source"] = f"TRACE = {trace!r}"
    return notebook


class _Drawn(HTMLParser):
    figure: dict[str, Any] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "marimo-plotly":
            self.figure = json.loads(dict(attrs)["data-figure"] or "null")


def _figure(html: str) -> dict[str, Any] | None:
    """Data and layout of the element by which marimo draws."""
    parser = _Drawn()
    parser.feed(html)
    return parser.figure
