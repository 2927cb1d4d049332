"""A page of docs whose commands are run: its files, its blocks, and whether they print what it shows."""

import re
import shlex
from pathlib import Path

from tests.forked import Forks

DOCS = Path(__file__).parents[1] / "docs"


class DocPage:
    """text: all of it. files: name -> content, of blocks behind "`name`...:". blocks: of commands and what the last of
    them prints. commands: indented lines, of which nothing is shown."""

    def __init__(self, name: str) -> None:
        self.text = (DOCS / name).read_text()
        self.files = dict(re.findall(r"^`([\w.-]+)`[^\n]*:\n\n```\w+\n(.*?)^```", self.text, re.S | re.M))
        self.blocks = re.findall(r"^```console\n(.*?)^```", self.text, re.S | re.M)
        self.commands = re.findall(r"^    (python -m .*)$", self.text, re.M)

    def write(self, folder: Path) -> Path:
        """The page's files."""
        for name, text in self.files.items():
            (folder / name).write_text(text)
        return folder

    def check(self, folder: Path, commands: Forks) -> None:
        """Every block prints what the page shows, in the files' folder."""
        for block in self.blocks:
            lines = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
            shown = "".join(line + "\n" for line in block.splitlines() if not line.startswith("$ "))
            assert [run(line, folder, commands) for line in lines][-1] == shown, lines


def run(line: str, folder: Path, commands: Forks) -> str:
    """What a command prints."""
    python, m, *words = shlex.split(line)
    assert (python, m) == ("python", "-m")
    done = commands.call(*words, cwd=folder)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return str(done.stdout)
