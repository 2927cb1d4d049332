"""Sweeps from flags: the same configurations as the file that says the same, and a folder that is found again."""

import shlex
import tomllib
from pathlib import Path

import pytest

from sim import catalog
from sim.flags import TYPES
from sim.spec import RunSpec
from sim.sweep import ENGINES, main, parser
from sim.sweeps.config import expand
from sim.sweeps.from_flags import folder_of, tables_of

FILE = """
trace = "mixtral.npz"
eviction = ["lru", "decayed"]
cache = [2, 0.5, "20GB"]
batch = 4
[set]
decayed.decay = [0.9, 0.99]
[[zip]]
prefetch = ["none", "popular"]
prefetch_budget = ["default", 2]
"""


def tables(line: str, config: str = "") -> dict[str, object]:
    words = shlex.split(line)
    return tables_of(parser().parse_args(words), words, tomllib.loads(config))


def ids(given: dict[str, object]) -> list[str]:
    return [run.id for run in expand(given)]


def test_flags_are_the_file_that_says_the_same_in_the_order_of_the_command_line() -> None:
    config = FILE.split("[[zip]]")[0]
    flags = "--trace mixtral.npz --eviction lru,decayed --cache 2,0.5,20GB --batch 4 --set decayed.decay=0.9,0.99"
    assert ids(tables(flags)) == ids(tomllib.loads(config)) and len(ids(tables(flags))) == 9
    other = "--trace mixtral.npz --cache 2,0.5,20GB --eviction lru,decayed --batch 4 --set decayed.decay=0.9,0.99"
    assert ids(tables(other)) != ids(tables(flags)) and {*ids(tables(other))} == {*ids(tables(flags))}


def test_a_flag_takes_the_place_of_the_files_axis() -> None:
    made = expand(tables("--cache 3 --set decayed.decay=0.5 --seed 1,2", FILE))
    assert [run.spec.seed for run in made if run.spec][:2] == [1, 2]  # new, so last and fastest
    assert {run.spec.cache for run in made if run.spec} == {3}
    assert {run.spec.set.get("decayed.decay") for run in made if run.spec} == {None, 0.5}
    assert len(made) == (1 + 1) * 2 * 2  # evictions, zip, seeds
    out_of_zip = expand(tables("--prefetch previous-token", FILE))
    assert {(run.spec.prefetch, run.spec.prefetch_budget) for run in out_of_zip if run.spec} == {
        ("previous-token", None), ("previous-token", 2)
    }  # fmt: skip
    residents = tables("--n-cpu-moe 0,4", FILE)
    assert "cache" not in residents and residents["n_cpu_moe"] == [0, 4]
    assert tables("", FILE) == tomllib.loads(FILE)


def test_what_is_right_with_its_commas_is_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b.npz").touch()
    found = tables(
        "--trace a,b.npz --requests 0,3,5 -ot 'blk.(1,2)=CPU' -ot x=CPU --miss split --set split.table=0,0,1 "
        "--set split.by=share,table --prefetch-budget default,2"
    )
    assert found == {
        "trace": "a,b.npz", "requests": "0,3,5", "override_tensor": "blk.(1,2)=CPU,x=CPU", "miss": "split",
        "set.split.table": "0,0,1", "set.split.by": ["share", "table"], "prefetch_budget": ["default", 2],
    }  # fmt: skip
    assert tables("--requests 0:4,4:8")["requests"] == ["0:4", "4:8"]
    assert tables("--trace a.npz,b.npz")["trace"] == ["a.npz", "b.npz"]


def test_every_flag_of_a_run_is_one_of_a_sweep_and_takes_text() -> None:
    args = vars(parser().parse_args([]))
    assert {*RunSpec.model_fields} <= {*args}
    for action in parser()._actions:
        assert action.dest not in RunSpec.model_fields or action.type not in TYPES.values(), action.dest
    assert not {*catalog.names("engine")} & {*ENGINES}  # `--engine ray` once named who runs a sweep


def test_the_folder_goes_by_content() -> None:
    one, again = (
        tables("--trace mixtral.npz --cache 2,3"),
        tables("--trace mixtral.npz --cache 2, 3".replace(", ", ",")),
    )
    other = tables("--trace mixtral.npz --cache 2,4")
    assert folder_of(None, one, True) == folder_of(None, again, True) != folder_of(None, other, True)
    assert str(folder_of(None, one, True)).startswith("mixtral-") and folder_of(None, one, True).suffix == ".sweep"
    assert folder_of("dir/grid.toml", tomllib.loads(FILE), False) == Path("grid.sweep")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "nothing to sweep: give --config FILE, or flags, such as: python -m sim.sweep --trace mixtral.npz"),
        ("--cache 2,3", "trace: missing"),
        ("--trace t.npz --cache 2,,3", "cache: '2,,3': must be values with one comma between"),
        ("--trace t.npz --batch 1,two", "batch: 'two': must be a whole number"),
        ("--trace t.npz --batch 1e1", "did you mean 10?"),
        ("--trace t.npz --set decayed.decay=0.9,0.8", "no configuration uses a policy 'decayed'"),
        (
            "--trace t.npz --cache 2-4",
            "cache: '2-4': must be slots (24), a fraction of the experts (0.5) or bytes (20GB)",
        ),
        ("--trace t.npz --cache 2:4 --eviction lru,lfu", "; did you mean 2,3,4?"),
        ("--trace t.npz --batch 1-3", "; did you mean 1,2,3?"),
        ("--trace t.npz --cache 0", "no configuration can be run: cache: '0': must be at least one slot"),
        ("--trace t.npz --pool rai", "did you mean ray?"),
        ("t.npz", "did you mean --trace t.npz?"),
        ("grid.toml", "did you mean --config grid.toml?"),
    ],
)
def test_what_is_no_sweep_is_one_line_and_nothing_written(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err and not [*tmp_path.iterdir()]


def test_a_sweep_from_flags_runs_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = shlex.split("--trace mixtral.npz --cache 2,4 --max-steps 2 --workers 1")
    assert main(flags) == 0
    (folder,) = tmp_path.iterdir()
    first, said = (folder / "results.parquet").read_bytes(), capsys.readouterr()
    assert f"{folder.name}: 2 runs over cache" in said.err and "cache 2:" in said.out and "cache 4:" in said.out
    assert main(flags) == 0
    assert "2 of 2 runs are done; 0 to go" in capsys.readouterr().err
    assert (folder / "results.parquet").read_bytes() == first and [*tmp_path.iterdir()] == [folder]


def test_the_answer_names_what_was_swept_with_its_defaults_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--trace mixtral.npz --max-steps 2 --workers 1 --engine ideal,llama.cpp --kv-precision bf16,q8 --ram 256GB"
    assert main(shlex.split(flags)) == 0
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("engine")]
    assert lines == [f"engine {name}, kv_precision {of}" for name in ("ideal", "llama.cpp") for of in ("bf16", "q8")]
