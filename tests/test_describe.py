"""`sim.run --describe` and `--list-policies`: everything that a policy takes is told, and told truly."""

import json
from pathlib import Path

import pytest

from sim.errors import SpecError
from sim.flags import settings
from sim.policies.describe import WIDTH, example, facts, listing, named
from sim.policies.policy import From, Policy
from sim.policies.registry import TABLES
from sim.policies.told import FIXED, LISTS, SCORES, paragraph
from sim.run import main
from sim.spec import RunSpec
from traces.format import npz

ROOT = Path(__file__).parent.parent
EVERY = [
    pytest.param(kind, each, id=f"{kind}-{each.name}") for kind, table in TABLES.items() for each in table.values()
]


@pytest.mark.parametrize(("kind", "policy"), EVERY)
def test_every_parameter_has_a_meaning_and_every_policy_a_paragraph(kind: str, policy: Policy) -> None:
    told = facts(kind, policy)
    assert told["more"] and told["source"] and told["does"]
    assert not [key for key, about in told["parameters"].items() if not about["means"]]
    assert set(policy.ranges) <= set(policy.parameters) <= set(policy.means)
    for page in told["read"].split(", "):
        assert (ROOT / page).is_file(), page


def outside(allowed: From) -> list[float]:
    """Numbers that lie just outside."""
    below = [allowed.least if allowed.above else allowed.least - 1]
    return below + ([allowed.most + 1] if allowed.most < 1e300 else []) + ([allowed.least + 0.5] * allowed.whole)


@pytest.mark.parametrize(("kind", "policy"), EVERY)
def test_what_is_out_of_range_is_refused_with_the_range_that_is_told(kind: str, policy: Policy) -> None:
    """By the policy itself or, of a prefetcher, by its predictor; the least and the most are taken."""
    take = policy.predictor if kind == "prefetch" else policy.values
    for key, allowed in policy.ranges.items():
        for value in outside(allowed):
            if value in policy.words(key).values():  # -1 is `none` as a number
                continue
            with pytest.raises(SpecError) as refused:
                take({key: int(value) if float(value).is_integer() else value})
            assert str(allowed) in str(refused.value) and str(allowed) in policy.allowed(key)
        take({key: int(allowed.least) + 1 if allowed.whole else (allowed.least + min(allowed.most, 1)) / 2})


@pytest.mark.parametrize(("kind", "policy"), EVERY)
def test_a_word_is_taken_as_its_number_and_another_refused(kind: str, policy: Policy) -> None:
    for key in policy.parameters:
        for word, number in policy.words(key).items():
            assert policy.values({key: word})[key] == word and policy.number(key, word) == number
            assert word in policy.allowed(key)
        if policy.words(key):
            with pytest.raises(SpecError, match=r"no-such-word"):
                policy.values({key: "no-such-word"})


@pytest.mark.parametrize(("kind", "policy"), EVERY)
def test_its_example_is_a_run(kind: str, policy: Policy) -> None:
    """As far as it can be told without the files that it names: the fields make a spec, and the parameters are its."""
    words = example(kind, policy).split()[3:]
    fields = {word.removeprefix("--").replace("-", "_"): words[i + 1] for i, word in enumerate(words) if i % 2 == 0}
    sets = settings([words[i + 1] for i, word in enumerate(words) if word == "--set"])
    fields |= {key: float(fields[key]) for key in ("calibration",) if key in fields}
    fields |= {key: int(fields[key]) for key in ("speculate",) if key in fields}
    spec = RunSpec.of({**fields, "set": sets} if sets else {k: v for k, v in fields.items() if k != "set"})
    found = spec.params(kind)
    assert getattr(spec, kind) == policy.name and len(found) == len(sets)
    (policy.predictor if kind == "prefetch" and policy.make else policy.values)(found)
    if not spec.trace.startswith("B-"):
        trace = npz.read(npz.find(spec.trace))
        assert all(trace.has(array) for array in policy.needs)


def test_evictions_are_told_in_the_words_of_their_page() -> None:
    page = (ROOT / "docs/evictions.md").read_text().splitlines()
    assert {*SCORES, *LISTS, *FIXED} == set(TABLES["eviction"])
    for name, text in {**SCORES, **LISTS, **FIXED}.items():
        assert f"| `{name}` | {text} |" in page, name
        assert text in paragraph("eviction", name)


def test_the_list_is_a_line_each_with_marks_and_fits_a_terminal() -> None:
    lines = listing().splitlines()
    assert max(map(len, lines)) <= WIDTH < 100
    named_there = [line.split()[0] for line in lines if line.startswith("  ")]
    assert named_there == [name for table in TABLES.values() for name in table]
    for kind, table in TABLES.items():
        part = listing().split(f"{kind}:\n")[1]
        for name, policy in table.items():
            line = next(line for line in part.splitlines() if line.split()[0] == name)
            assert all(
                (mark in line.rpartition("[")[2]) == getattr(policy, mark) for mark in ("oracle", "fitted", "lossy")
            )


def test_a_name_of_two_kinds_is_told_of_both_and_of_one_by_its_kind() -> None:
    assert [*named("random")] == ["eviction", "miss", "placement"]
    assert [*named("miss.random")] == ["miss"] and [*named("MISS_POLICY")] == []
    assert [*named("Gate_Lookahead")] == ["prefetch"]


OWN = '''
def rarest(view, state, params):
    """The fewest uses go.

    spared   so many stay,
             whatever they did.

    An example.
    """
    return 0


rarest.params = {"spared": 4}


def again(trace, steps, ahead=1):
    """What was used last."""
'''


def test_a_users_own_is_told_from_its_docstring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    assert main(["--describe", f"{path}:rarest", "--json"]) == 0
    ((kind, found),) = json.loads(capsys.readouterr().out).items()
    (told,) = found.values()
    assert (kind, told["does"], told["more"]) == ("eviction", "The fewest uses go.", "An example.")
    assert told["parameters"]["spared"] == {
        "default": "4", "may_be": "any number", "means": "so many stay, whatever they did."
    }  # fmt: skip
    assert [*named(f"{path}:again")] == ["prefetch"] and [*named(f"miss.{path}:rarest")] == ["miss"]
    assert main(["--describe", f"{path}:nobody"]) == 2
    assert "known: again, rarest" in capsys.readouterr().err


def test_the_command_tells_policies_words_and_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--describe", "buddy"]) == 0
    out = capsys.readouterr().out
    assert "tau " in out and "arXiv 2511.10054" in out and "--calibration 0.3" in out and "fitted" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("example")) < 100
    assert main(["--describe", "TAE"]) == 0
    assert capsys.readouterr().out.startswith("TAE: token activation entropy")
    assert main(["--describe", "budy"]) == 2
    assert capsys.readouterr().err.endswith("did you mean buddy?\n")
    assert main(["--list-policies", "--json"]) == 0
    assert {kind: [*table] for kind, table in json.loads(capsys.readouterr().out).items()} == {
        kind: [*table] for kind, table in TABLES.items()
    }
