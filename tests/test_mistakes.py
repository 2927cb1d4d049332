"""What a user gets wrong in the first hour: one line on stderr, exit status 2, and what to do about it.

Each is what somebody would really type; beside it what the one line must say.
"""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "sim.run --trace mixtral.npz --max-steps 2"
# command line (behind `python -m`) -> what its one line says
MISTAKES = {
    # --- words in the wrong place ---
    "sim.run mixtral.npz": "did you mean --trace mixtral.npz?",
    "sim.run mixtral": "did you mean --trace mixtral?",
    "sim.run": "trace: missing; give --trace FILE, or the name of a shipped sample, such as: python -m sim.run --trace",
    "sim.run grid.toml": "did you mean --config grid.toml?",
    "sim.sweep": "nothing to sweep: give --config FILE, or flags, such as: python -m sim.sweep --trace mixtral.npz",
    "sim.sweep mixtral.npz": "did you mean --trace mixtral.npz?",
    "sim.recommend mixtral.npz": "did you mean --trace mixtral.npz?",
    "sim.profile mixtral.npz": "did you mean --trace mixtral.npz?",
    "analysis.miss_curve --trace mixtral.npz": "without a flag: python -m analysis.miss_curve mixtral.npz",
    "analysis.report --run out": "without a flag: python -m analysis.report out",
    "analysis.compare": "RUN: missing; such as: python -m analysis.compare",
    "traces info --trace mixtral.npz": "without a flag: python -m traces info mixtral.npz",
    "traces mixtral.npz": "did you mean python -m traces info mixtral.npz?",
    "traces infos mixtral.npz": "did you mean info?",
    "traces": "one of info, split, convert, card, synth, capture is required, such as: python -m traces info",
    "sim rum --trace mixtral.npz": "rum: no such command; did you mean run?",
    # --- flags ---
    f"{RUN} --max_steps 5": "did you mean --max-steps?",
    f"{RUN} --evict lru": "did you mean --eviction?",
    f"{RUN} --json --out": "--out: needs a value: --out DIR",
    f"{RUN} --record all": "one of none, summary, full is required",
    # --- as other tools call it ---
    f"{RUN} --gpu rtx4090": "did you mean --hardware?",
    f"{RUN} -ngl 20": "did you mean --n-cpu-moe, the layers whose experts stay on the host (docs/engines.md)?",
    f"{RUN} --n-gpu-layers 20": "did you mean --n-cpu-moe",
    "sim.recommend --cache 4": "it is chosen for you",
    "sim.recommend mixtral-8x7b": "did you mean --model mixtral-8x7b?",
    f"{RUN} --version": "moe-offload-sim --version",
    "sim.sweep --trace mixtral.npz --json": "results.csv",
    f"{RUN} -v": "-v: unknown argument; see python -m sim.run --help",
    f"{RUN} --eviction buddy": "buddy is a --miss",
    "sim.run --describe knee": "nor a word of the glossary\n",
    f"{RUN} --model model.gguf": "what python -m sim.model makes of a config.json",
    f"{RUN} --engine exllama": "not in the catalog; known: ",
    "sim.run --trace nope.npz": "samples: mixtral, tiny-moe, tiny-moe-calibration\n",
    "sim.run --trace mixtral.npz --trace tiny-moe.npz": "--trace: given twice (mixtral.npz, tiny-moe.npz); it",
    # --- values ---
    f"{RUN} --vram 24000": "did you mean 24000MiB?",
    f"{RUN} --vram 0": "vram: '0': must be above 0",
    f"{RUN} --vram -5GB": "--vram: '-5GB': must be above 0",
    f"{RUN} --calibration 1.0 --miss buddy": "did you mean 0.3?",
    f"{RUN} --link-gbps 25GB": "did you mean 25?",
    f"{RUN} --context-offset 8k": "did you mean 8000 (or 8192)?",
    f"{RUN} --watts 350W": "did you mean 350?",
    f"{RUN} --price-per-hour $0.79": "did you mean 0.79?",
    f"{RUN} --watts 300 --idle-watts 400": "must be at most --watts",
    f"{RUN} --cache 50%": "did you mean 0.5?",
    f"{RUN} --cache 24 GB": "did you mean --cache 24GB?",
    f"{RUN} --cache 24G": "did you mean 24GB?",
    f"{RUN} --cache 9": "a layer has 8 experts; must be at most 8 slots",
    f"{RUN} --vram 24": "did you mean 24GB?",
    f"{RUN} --batch 0": "batch: 0: must be at least 1",
    f"{RUN} --batch two": "--batch: 'two': must be a whole number",
    f"{RUN} --batch 1e3": "did you mean 1000?",
    "sim.run --trace mixtral.npz --max-steps -1": "max_steps: -1: must be at least 1",
    f"{RUN} --calibration 30% --miss buddy": "did you mean 0.3?",
    f"{RUN} --calibration 30 --miss buddy": "did you mean 0.3?",
    f"{RUN} --cache-scope pool": "must be 'layer' or 'global'",
    f"{RUN} --precision q44": "did you mean q4?",
    # --- names ---
    f"{RUN} --miss budy": "did you mean buddy?",
    f"{RUN} --eviction leru": "did you mean l",
    f"{RUN} --hardware rtx9090": "did you mean rtx",
    f"{RUN} --model mixtrall": "did you mean mixtral",
    f"{RUN} --engine lamacpp": "did you mean llama",
    "sim.run --describe budy": "did you mean buddy?",
    # --- policies and what they need ---
    f"{RUN} --miss buddy --calibration 0.3 --set tau=0.6": "did you mean buddy.tau?",
    f"{RUN} --set tau=0.6": "did you mean --miss buddy --set buddy.tau=...?",
    f"{RUN} --set buddy.tau=0.6": "did you mean --miss buddy --set buddy.tau=...?",
    f"{RUN} --miss buddy --calibration 0.3 --set buddy.tau=lots": "must be a number from 0 or none",
    f"{RUN} --miss buddy": "needs --calibration FILE|FRACTION, such as 0.3",
    "sim.run --trace tiny-moe-calibration.npz --prefetch gate-lookahead": "capture records it; --prefetch previous",
    # --- files ---
    "sim.run --trace mixtrl.npz": "did you mean mixtral?",
    "sim.run --trace folder": "a .npz is required; python -m traces convert reads folders that engines wrote",
    "sim.run --trace log.json": "python -m traces convert log.json log.npz --model NAME",
    "sim.run --trace log.csv": "python -m traces convert log.csv log.npz --model NAME",
    "sim.run --trace https://hub.example/t.npz": "fetch it first, such as: curl -LO https://hub.example/t.npz",
    "sim.run --config run.json": "write it as TOML",
    f"{RUN} --out log.json": "is a file; must be a folder",
    "traces split mixtral.npz there.npz new.npz --fraction 0.5": "is there already; give another name, or --force",
    "traces convert log.csv": "required: --model NAME",
    "traces synth --like mixtral-8x7b --out there.npz": "is there already; give another name, or --force",
    "analysis.report folder": "folder",
    "sim.sweep --trace mixtral.npz --cache 2,,3": "must be values with one comma between, such as 2,3,4",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is named above."""
    where = tmp_path_factory.mktemp("mistakes")
    (where / "folder").mkdir()
    (where / "log.json").write_text('{"experts": [[1, 2]]}')
    (where / "log.csv").write_text("token,layer,expert\n0,0,1\n")
    (where / "run.json").write_text('{"trace": "mixtral.npz"}')
    (where / "there.npz").write_bytes(b"mine")
    return where


def command(line: str) -> int:
    name, *words = shlex.split(line)
    module = f"{name}.__main__" if "." not in name else name
    return int(importlib.import_module(module).main(words))


@pytest.mark.parametrize("line", MISTAKES)
def test_it_is_one_line_that_says_what_to_do(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert command(line) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ") and MISTAKES[line] in said, said
    assert "Traceback" not in said and "argument --" not in said and "Input should" not in said
    assert sorted(place.rglob("*")) == before and (place / "there.npz").read_bytes() == b"mine"


def test_there_are_many() -> None:
    assert len(MISTAKES) >= 25


@pytest.mark.parametrize(
    "line",
    [
        "--hardware 4090", "--model Mixtral-8x7B-v0.1", "--precision Q4_K_M", "--precision int4", "--miss Fetch",
        "--eviction LRU", "--prefetch Previous_Token", "--engine llamacpp", "--cache-scope Global", "--warmup-share 0",
        "--prefetch None", "--cache '24 GB'",
    ],
)  # fmt: skip
def test_what_names_one_thing_alone_is_taken(line: str) -> None:
    """Case, hyphens and underscores are nobody's mistake; a spec says the name as it is written here."""
    from sim.flags import spec_of
    from sim.prepare import prepare
    from sim.run import parser

    spec = spec_of(parser().parse_args(shlex.split(f"--trace mixtral.npz --max-steps 2 {line}")))
    for kind, name in spec.policies.items():
        assert name == name.lower().replace("_", "-"), kind
    assert prepare(spec).steps


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "sim"], "such as: python -m sim run --trace mixtral.npz"),
        (["-m", "analysis"], "such as: python -m analysis.report"),
        (["-m", "sim.rum"], "did you mean sim.run?"),
        (["-m", "analysis.reports"], "did you mean analysis.report?"),
    ],
)
def test_a_module_that_is_no_command_is_one_line_too(words: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
