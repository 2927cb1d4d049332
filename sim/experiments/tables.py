"""What every experiment shares: its command line, and a table kept as markdown and CSV."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from traces.command import Parser, out_folder, write_bytes

Cell = str | float | int | None
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Column:
    """One column: its key in rows and in the CSV, its heading in markdown, digits after the point (None: as it is).
    csv_only: too long for the markdown table; markdown_only: made of other columns."""

    key: str
    title: str
    digits: int | None = None
    signed: bool = False
    csv_only: bool = False
    markdown_only: bool = False

    def text(self, value: Cell) -> str:
        """A cell for people; `-` is what is not known or does not apply."""
        if value is None:
            return "-"
        if isinstance(value, str) or self.digits is None:
            return str(value).replace("|", "\\|")
        return f"{value:{'+' if self.signed else ''},.{self.digits}f}"


@dataclass(frozen=True)
class More:
    """A further table, of the markdown alone."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Report:
    """A finished experiment: title, lines above the table, the table, lines below it, further tables; csv_rows: rows
    that follow the table's in the CSV and are too many for the markdown; first: tables of the markdown that stand above
    the table. Rows may lack keys."""

    title: str
    head: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Row]
    foot: Sequence[str] = ()
    more: Sequence[More] = ()
    csv_rows: Sequence[Row] = ()
    first: Sequence[More] = ()

    def markdown(self, command: str) -> str:
        """The whole report, the command that made it first."""
        lines = [f"# {self.title}", "", f"    {command}", "", *(f"- {line}" for line in self.head), ""]
        for table in self.first:
            lines += [f"## {table.title}", "", *_table(table.columns, table.rows), ""]
        lines += [*_table(self.columns, self.rows), "", *(f"- {line}" for line in self.foot)]
        for table in self.more:
            lines += ["", f"## {table.title}", "", *_table(table.columns, table.rows)]
        return "\n".join(lines).rstrip() + "\n"

    def csv(self, command: str) -> str:
        """The table alone, figures to six digits; the first line is a comment with the command."""
        text = io.StringIO()
        text.write(f"# {command}\n")
        write = csv.writer(text, lineterminator="\n")
        columns = [column for column in self.columns if not column.markdown_only]
        write.writerow([column.key for column in columns])
        for row in (*self.rows, *self.csv_rows):
            cells = [row.get(column.key) for column in columns]
            write.writerow(["" if c is None else f"{c:.6g}" if isinstance(c, float) else c for c in cells])
        return text.getvalue()

    def write(self, folder: Path, name: str, command: str) -> None:
        """`name`.md and `name`.csv in `folder`, whole or not at all. Raises UserError if that is a file."""
        out_folder(folder).mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".md", self.markdown(command)), (".csv", self.csv(command))):
            write_bytes(folder / f"{name}{suffix}", text.encode())


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """The lines of a table in markdown."""
    shown = [column for column in columns if not column.csv_only]
    lines = ["| " + " | ".join(column.title for column in shown) + " |"]
    lines.append("|" + "|".join("---" if column.digits is None else "---:" for column in shown) + "|")
    return lines + ["| " + " | ".join(column.text(row.get(column.key)) for column in shown) + " |" for row in rows]


def parser(name: str, doc: str, steps: bool = True) -> Parser:
    """A parser with the flags that every experiment has; steps: --max-steps, too."""
    out = Parser(prog=f"python -m sim.experiments {name}", description=doc)
    out.add_argument("--out", metavar="DIR", help=f"write {name}.md and {name}.csv there")
    if steps:
        out.add_argument("--max-steps", type=int, metavar="N", help="stop each run after so many steps")
    return out


def command_line(args: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(["python", "-m", "sim.experiments", *args])


def percent(share: float | None) -> float | None:
    """A share in percent."""
    return None if share is None else 100 * share


def gain(value: float | None, base: float | None) -> float | None:
    """By how many percent `value` exceeds `base`."""
    return None if not value or not base else 100 * (value / base - 1)
