"""What a command says while it works: a line when nothing else was said for long, and none where nobody wants it."""

import threading

import pytest

from traces import progress
from traces.command import guarded


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.QUIET, raising=False)


def long(seen: threading.Event) -> None:
    """As long as it takes until two lines were said, a minute at most."""
    progress.doing("round 1 of 2")
    assert seen.wait(60)


def test_who_says_nothing_is_spoken_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen, lines, show = threading.Event(), [], progress.show

    def shown(line: str) -> None:
        show(line)
        lines.append(line)
        if len(lines) == 2:
            seen.set()

    monkeypatch.setattr(progress, "show", shown)
    with progress.watched(every_s=0.01):
        long(seen)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == lines[:2] and all(line.endswith("s: round 1 of 2 ...") for line in said)


def test_a_command_that_ends_at_once_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda argv: progress.doing("nearly there"), []) == 0
    assert capsys.readouterr().err == ""


def test_nobody_hears_a_quiet_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.QUIET, "1")
    before = threading.active_count()
    with progress.watched(every_s=0.001):
        assert threading.active_count() == before
