"""CONTRIBUTING's recipes, performed: each is carried out in a copy of the sources, and then its commands are run there.

A recipe is a section of CONTRIBUTING.md. Its ```diff blocks begin with the file they change: lines with a space stand
there, with - go, with + come, and an empty line ends a change. What follows in ```console is then run, and what stands
under a command must be in its output. The core is run as plain Python, so nothing is compiled.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.copied import ROOT, copied
from tests.forked import Forks

KINDS = ("eviction", "prefetcher", "miss policy", "re-ranker", "format", "engine", "GPU", "figure")


class Command(NamedTuple):
    """Its words after `python -m`, and what its output must hold."""

    words: list[str]
    shown: list[str]


class Recipe(NamedTuple):
    """changes: (file, text that stands there once or "" for a new file, what it becomes)."""

    changes: list[tuple[str, str, str]]
    commands: list[Command]


def recipes(page: str) -> dict[str, Recipe]:
    """By what is added: the sections `### An eviction` and so on."""
    sections = re.split(r"^### An? (.+)\n", page, flags=re.M)[1:]
    return {name: _recipe(text.split("\n## ")[0]) for name, text in zip(sections[::2], sections[1::2], strict=True)}


def _recipe(text: str) -> Recipe:
    changes = []
    for file, block in re.findall(r"```diff\n(\S+)\n(.*?)```", text, re.S):
        for hunk in re.split(r"\n\n", block.strip("\n")):
            lines = [line if line else " " for line in hunk.split("\n")]
            assert {line[0] for line in lines} <= set(" +-"), f"{file}: a line of a change begins with a space, + or -"
            before, after = ("\n".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
            changes.append((file, before, after))
    commands = []
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for call in re.split(r"^\$ python -m ", block, flags=re.M)[1:]:
            first, *shown = call.rstrip().split("\n")
            commands.append(Command(shlex.split(first), [line.strip() for line in shown]))
    return Recipe(changes, commands)


def perform(recipe: Recipe, folder: Path) -> None:
    """Changes the sources there."""
    for name, before, after in recipe.changes:
        path = folder / name
        if not before and not path.exists():
            path.write_text(after + "\n")
            continue
        source = path.read_text()
        assert source.count(before) == 1 and before, f"{name} has changed: the recipe stands elsewhere for {before!r}"
        path.write_text(source.replace(before, after))


RECIPES = recipes((ROOT / "CONTRIBUTING.md").read_text())


def test_every_kind_has_a_recipe_that_changes_and_runs_something() -> None:
    assert tuple(RECIPES) == KINDS
    assert all(recipe.changes and any(each.shown for each in recipe.commands) for recipe in RECIPES.values())


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_works(kind: str, sources: Path, tmp_path: Path, forks: Forks) -> None:
    copied(sources, tmp_path)
    perform(RECIPES[kind], tmp_path)
    for words, shown in RECIPES[kind].commands:
        done = forks.call(*words, cwd=tmp_path, sources=tmp_path)
        assert done.returncode == 0, done
        missing = [line for line in shown if line not in done.stdout]
        assert not missing, (words, missing, done)


@pytest.mark.parametrize("kind", RECIPES)
def test_before_it_is_performed_its_first_command_fails(kind: str, forks: Forks) -> None:
    """So it does not run for some other reason."""
    assert forks.call(*RECIPES[kind].commands[0].words).returncode != 0


# Tests that look at everything there is of a kind, wherever they stand.
OF_ALL = {
    "tests/test_digests.py": "has_a_command",
    "tests/test_predictors.py": "registry",
    "tests/test_readers.py": "documentation",
    "tests/test_report.py": "eyes",
    "tests/test_policy_contract.py": "test_a_search or test_what_is_tried",
}


def test_with_all_of_them_performed_nothing_else_is_asked_for(sources: Path, tmp_path: Path, forks: Forks) -> None:
    copied(sources, tmp_path)
    for recipe in RECIPES.values():
        perform(recipe, tmp_path)
    words = ("pytest", "-q", "-p", "no:cacheprovider", *OF_ALL, "-k", " or ".join(OF_ALL.values()))
    done = forks.call(*words, cwd=tmp_path, sources=tmp_path)
    assert done.returncode == 0, done
