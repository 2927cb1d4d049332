"""A page of docs whose commands are run: its files, its blocks, and whether they print what it shows."""

import shlex
from pathlib import Path

from tests.blocks import DOCS, blocks, prints
from tests.forked import Forks


class DocPage:
    """text: all of it. files: name -> content. blocks: of commands and what they print. commands: indented lines, of
    which nothing is shown."""

    def __init__(self, name: str) -> None:
        self.text, found = (DOCS / name).read_text(), blocks(DOCS / name)
        self.files = {block.name: block.text for block in found if block.name}
        self.blocks = [block for block in found if block.kind == "console"]
        self.commands = [each.line for block in found if block.kind == "indented" for each in block.commands]

    def write(self, folder: Path) -> Path:
        """The page's files."""
        for name, text in self.files.items():
            (folder / name).write_text(text)
        return folder

    def check(self, folder: Path, commands: Forks) -> None:
        """Every block prints what the page shows, in the files' folder."""
        for block in self.blocks:
            for line, shown in block.commands:
                printed = run(line, folder, commands, 2 if shown.startswith("error: ") else 0)
                assert not shown or prints(shown, printed), (line, shown, printed)


def run(line: str, folder: Path, commands: Forks, status: int = 0) -> str:
    """What a command prints; of an error, what stands on stderr."""
    python, m, *words = shlex.split(line, comments=True)
    assert (python, m) == ("python", "-m")
    done = commands.call(*words, cwd=folder)
    assert done.returncode == status, f"{line}: {done.stderr}"
    return str(done.stderr if status else done.stdout)
