"""The commands, snippets and files that README.md and docs/*.md show, and whether they print what stands there.

A block is what stands between two fences, or a run of indented lines that are commands. On the last line before it may
stand, between `<!--` and `-->` (GitHub and the site show neither), what is to be done with it:

    not run: REASON          nobody runs it, for one of the REASONS
    run by tests/test_x.py   a test of the suite does
    into FILE                the snippet is a part of that file, which commands below it use

"`FILE` ...:" there makes the block a file. A `text` block behind a snippet is what that prints. Lines behind a command
are what it prints: `...` stands for any number of lines, and of what is written for stderr it is enough to be there.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
REASONS = {
    "a file of yours": "it reads what only the reader has",
    "a download": "a model comes from the network",
    "a GPU": "there is none in CI",
    "a cluster": "there is none in CI",
    "minutes": "it takes longer than an hour's tutorial allows",
    "installs": "tests/first_hour.py has installed the wheel, otherwise the same",
    "another library": "it is shown as that library's users write it",
}
COMMAND = re.compile(r"(python|moe-offload-sim|marimo|pip)\s")
FORM = re.compile(r"(?<![\w$])[A-Z][A-Z0-9-]+(?!\w)|\[-|\.\.\.|\|")  # words in capitals, [--flag], a|b: to be filled in


class Command(NamedTuple):
    """line: as it is typed. shown: what it prints, "" where nothing is shown."""

    line: str
    shown: str


class Block(NamedTuple):
    """page: from the root. line: where its text begins, from 1. kind: console, python, indented, text, or a file's.
    mark: what stands between `<!--` and `-->` before it, or "". name: of the file that it is, or ""."""

    page: str
    line: int
    kind: str
    text: str
    mark: str = ""
    name: str = ""

    @property
    def reason(self) -> str:
        """Why nobody runs it, or ""."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else ""

    @property
    def test(self) -> str:
        """The file of the suite that runs it, or ""."""
        return self.mark.removeprefix("run by ") if self.mark.startswith("run by ") else ""

    @property
    def target(self) -> str:
        """The file that it is a part of, or ""."""
        return self.mark.removeprefix("into ") if self.mark.startswith("into ") else ""

    @property
    def commands(self) -> list[Command]:
        """Of a console block each with what it prints; of indented lines those that are no form to be filled in."""
        if self.kind == "indented":
            return [Command(line, "") for line in self.text.splitlines() if not is_form(line)]
        if self.kind != "console":
            return []
        parts = re.split(r"^\$ ", self.text, flags=re.M)[1:]
        return [Command(line, shown) for line, _, shown in (part.partition("\n") for part in parts)]


def is_form(line: str) -> bool:
    """Whether a line says how a command is written and not one to be typed: `--trace TRACE`, `[--out DIR]`, `a|b`."""
    command = line.split(" # ")[0]
    return not COMMAND.match(line) or bool(FORM.search(command))


def blocks(page: Path) -> list[Block]:
    """All of a page, in order."""
    lines, found, at = page.read_text().splitlines(), [], 0
    while at < len(lines):
        begin = at
        if lines[at].startswith("```"):
            end = lines.index("```", at + 1)
            kind, text, at = lines[at][3:], lines[begin + 1 : end], end + 1
            begin += 1
        elif _indented(lines, at):
            end = next((i for i in range(at, len(lines)) if not lines[i].startswith("    ")), len(lines))
            kind, text, at = "indented", [line[4:] for line in lines[at:end]], end
        else:
            at += 1
            continue
        above = next((line for line in reversed(lines[: begin - (kind != "indented")]) if line), "")
        mark, name = (re.fullmatch(form, above) for form in (r"<!-- (.*) -->", r"`([\w.-]+)`.*:"))
        found.append(
            Block(
                str(page.relative_to(ROOT)),
                begin + 1,
                kind,
                "".join(f"{line}\n" for line in text),
                mark[1] if mark else "",
                name[1] if name and kind not in ("console", "indented") else "",
            )
        )
    return found


def _indented(lines: list[str], at: int) -> bool:
    return lines[at].startswith("    ") and not lines[at - 1].strip() and bool(COMMAND.match(lines[at][4:]))


def pages() -> list[Path]:
    """README.md, the first hour, then the rest of docs."""
    first = [ROOT / "README.md", DOCS / "first-hour.md"]
    return first + sorted(set(DOCS.glob("*.md")) - set(first))


def prints(shown: str, printed: str) -> bool:
    """Whether a command's output is what is shown of it; spaces at the ends of lines do not count."""
    parts: list[list[str]] = [[]]
    for line in shown.splitlines():
        if line.strip() == "...":
            parts.append([])
        else:
            parts[-1].append(re.escape(line.rstrip()))
    form = r"(.*\n)*?".join("".join(f"{line}\n" for line in part) for part in parts)
    return re.fullmatch(form, "".join(f"{line.rstrip()}\n" for line in printed.splitlines())) is not None


def shortened(printed: str, shown: str) -> str:
    """Output as a page shows it: with one `...`, as many lines before and behind it as stand there now."""
    lines, now = [line.rstrip() for line in printed.splitlines()], shown.splitlines()
    if "..." in now:
        before = now.index("...")
        behind = len(now) - before - 1
        lines = [*lines[:before], "...", *(lines[len(lines) - behind :] if behind else [])]
    return "".join(f"{line}\n" for line in lines)
