"""Command line of a placement: `python -m sim.placement --trace T --placement popular --calibration C --out P.npz`.

Writes the first residents that a run with the same flags would have, for tools that place experts themselves:
`python -m traces convert --to sglang P.npz location.json`. Nothing is simulated.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sim.flags import spec_of
from sim.prepare import Setting, prepare
from sim.run import parser
from traces.command import guarded, out_file, typed
from traces.format import placement
from traces.format.placement import KIND, VERSION, Placement


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    flags = parser()
    flags.prog, flags.description = (
        typed("python -m sim.placement"),
        "Write the first residents of a run to --out FILE.",
    )
    args = flags.parse_args(argv)
    spec = spec_of(args)
    out = out_file(args.out or f"{Path(spec.trace).stem}-{spec.placement}.npz", args.force)
    chosen = of(prepare(spec))
    placement.write(out, chosen)
    print(f"{out}: {len(chosen.residents):,} residents of {len(chosen.meta['moe_layers'])} MoE layers")


def of(setting: Setting) -> Placement:
    """The placement that a run begins with."""
    trace, spec = setting.trace, setting.spec
    meta = {"kind": KIND, "format_version": VERSION, "chosen_by": spec.placement, "seed": spec.seed}
    meta |= {key: trace.meta[key] for key in ("model", "n_experts", "n_layers", "moe_layers", "real")}
    return Placement(setting.plan.residents, meta | {"trace_hash": setting.trace_hash})


if __name__ == "__main__":
    sys.exit(main())
