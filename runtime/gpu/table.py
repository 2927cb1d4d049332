"""The parts of a GPU day: what runs, for how long at most, and what of it is sent back.

A command is what follows `python -m`. What stands in braces in it is filled in: by WORDS, which differ between the day
and its dry run, and when it starts: `{seconds}` is a deadline a little before the end of the part's box, `{memory}` is
`--host-memory SIZE` where the machine's memory has to be stated, else nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

DRY_BOX_S = 240.0  # of every part of a dry run: for a machine that others use, too
SECOND = "deepseek-v2-lite"  # the model with many small experts: 64 a layer, of 17 MB
WORDS: Mapping[str, Mapping[str, str]] = {
    "cuda": {
        "device": "cuda",
        "more": "live",
        "second": SECOND,
        "touched": "32",  # GB; Mixtral with two experts a layer on the host takes 23
        "small": "--device cuda --precision bf16 --scale 0.25 --alias-host 2",
        "coarse": "--device cuda --alias-host 2",
        "fine": "--device cuda --alias-host 8",
        "quick": "--quick --seconds {seconds} {memory}",
    },
    "cpu": {  # models of a 128th of the width, fewer layers, a paced link, few steps
        "device": "cpu",
        "more": "",  # the part `live` compiles it just as well: no GPU waits
        "second": "olmoe-1b-7b",  # 64 a layer, too
        "touched": "1",
        "small": "--device cpu --precision fp32 --scale 0.0078125 --link-gbps 0.5",
        "coarse": "--device cpu --precision fp32 --scale 0.0078125 --link-gbps 0.5",
        "fine": "--device cpu --precision fp32 --scale 0.0078125 --link-gbps 0.5",
        "quick": "--quick --steps 4 --repeats 1 --seconds 90 {memory}",
    },
}
MAKE_SECOND = "runtime.gpu.parts.synthetic {second} scratch/second.npz"
OF_SECOND = "--trace scratch/second.npz --model {second} {fine}"
SMOKE = "runtime.replay --trace mixtral.npz {small} {memory} --cache 0.5 --check"
RECORD = "validation/validation.json"


@dataclass(frozen=True)
class Part:
    """One part.

    shows: for people; commands: run one after the other in one box of box_s seconds; early: needs nothing of numba's;
    beside: runs in the background until the first part that is not early; fresh: made for this machine, so run every
    time; record: a file of the part's folder, and once it is written exit status 1 and 3 are verdicts and no failures;
    keeps: files of the part's folder that are sent back under a plain name, too; shown: last lines of the log that are
    printed.
    """

    name: str
    shows: str
    box_s: float
    commands: tuple[str, ...]
    early: bool = False
    beside: bool = False
    fresh: bool = False
    record: str | None = None
    keeps: Mapping[str, str] = field(default_factory=dict)
    shown: int = 12


def judged(name: str) -> dict[str, str]:
    """What is kept of a validation."""
    return {RECORD: f"validation_{name}.json", "validation/validation.md": f"validation_{name}.md"}


PARTS = (
    Part(
        name="versions",
        shows="machine, GPU, bus, driver, versions, limits; touches host memory",
        box_s=25,
        commands=("runtime.gpu.parts.versions --touch-gb {touched}",),
        early=True,
        shown=45,
    ),
    Part(
        name="compile",
        shows="numba's cache, beside the parts that need none of it",
        box_s=150,
        commands=("runtime.gpu.parts.compiling log everything lean replay prefetching {more}",),
        early=True,
        beside=True,
        fresh=True,
    ),
    Part(
        name="probe",
        shows="each call that the accelerator port makes, alone",
        box_s=25,
        commands=("runtime.gpu.parts.probe {device}",),
        early=True,
        shown=20,
    ),
    Part(
        name="copies",
        shows="bare copies by size and kind of host memory, both ways; a kernel beside a copy",
        box_s=25,
        commands=("runtime.gpu.parts.copies {device}",),
        early=True,
        shown=30,
    ),
    Part(
        name="tests",
        shows="the tests marked gpu; in a dry run the same on a simulated GPU",
        box_s=65,
        commands=("runtime.gpu.parts.marked {device}",),
        shown=30,
    ),
    Part(
        name="smoke",
        shows="three small replays, checked: decode, a batch of four in grouped kernels, prompts",
        box_s=45,
        commands=(
            f"{SMOKE} --max-steps 8 --as-decode --warmup-steps 1 --repeat 2",
            f"{SMOKE} --max-steps 6 --as-decode --batch 4 --expert-group all",
            f"{SMOKE} --max-steps 3 --batch 1",
        ),
    ),
    Part(
        name="calibrate",
        shows="a hardware file, of {second}",
        box_s=40,
        commands=(
            "runtime.calibrate --model {second} {fine} {quick} --batches 1 --caches 0.5,0.9 --out calibrated.toml",
        ),
        keeps={"calibrated.toml": "calibrated.toml"},
        shown=40,
    ),
    Part(
        name="mixtral",
        shows="simulated against measured: few large experts",
        box_s=125,
        commands=(
            "runtime.validate --trace mixtral.npz {coarse} {quick} --batches 1 --caches 4,7,8 "
            "--policies lru,lru+gate-lookahead --out validation",
        ),
        record=RECORD,
        keeps=judged("mixtral"),
        shown=60,
    ),
    Part(
        name="second",
        shows="simulated against measured: many small experts",
        box_s=60,
        commands=(
            MAKE_SECOND,
            f"runtime.validate {OF_SECOND} {{quick}} --batches 1 --caches 0.25,0.5,1.0 "
            "--policies lru,lru+transition --out validation",
        ),
        record=RECORD,
        keeps=judged("second"),
        shown=60,
    ),
    Part(
        name="live",
        shows="a Hugging Face model generates as it does without the cache; the command runtime.live",
        box_s=40,
        commands=(
            "runtime.gpu.parts.generate {device} scratch/model",
            "runtime.live --model scratch/model --prompt 'def main(argv):' --device {device} --cache 2 "
            "--hardware h200 --max-new-tokens 16",
        ),
    ),
    Part(
        name="timeline",
        shows="a recorded step, for Perfetto",
        box_s=25,
        commands=(
            MAKE_SECOND,
            f"runtime.replay {OF_SECOND} {{memory}} --max-steps 6 --as-decode --cache 0.5 --out scratch/run "
            "--record full",
            "analysis.timeline scratch/run --steps 3:5 --out step.json.gz",
        ),
    ),
    Part(
        name="profile",
        shows="torch.profiler over a few steps",
        box_s=25,
        commands=(
            MAKE_SECOND,
            f"runtime.gpu.parts.profiled {OF_SECOND} {{memory}} --max-steps 3 --as-decode --cache 0.5",
        ),
        shown=30,
    ),
)


def parts(device: str) -> tuple[Part, ...]:
    """The day on `cuda`, or on `cpu` its dry run: the same commands in a small size."""
    return tuple(
        replace(
            part,
            shows=filled(part.shows, WORDS[device]),
            box_s=part.box_s if device == "cuda" else DRY_BOX_S,
            commands=tuple(filled(command, WORDS[device]) for command in part.commands),
        )
        for part in PARTS
    )


def filled(command: str, words: Mapping[str, str]) -> str:
    """A command with these words in the place of their names in braces; other names stay."""
    for name, word in words.items():
        command = command.replace(f"{{{name}}}", word)
    return command
