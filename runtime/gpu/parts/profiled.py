"""python -m runtime.gpu.parts.profiled FLAGS of runtime.replay: a replay under torch.profiler.

Writes profile.json.gz, a trace of time for Perfetto and chrome://tracing, and kernels.json: for each operation how
often it ran, and its own time on the host and on the device.
"""

import json
import sys
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from runtime.device.choose import choose
from runtime.replay import arguments
from runtime.replaying.opened import Opened
from runtime.replaying.replays import options_of
from sim.flags import spec_of
from sim.prepare import prepare
from traces.command import write_bytes


def profiled(argv: list[str]) -> Any:
    """The profile of one run, after a warm-up that is not profiled."""
    args = arguments().parse_args(argv)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    setting, port = prepare(spec_of(args)), choose(args.device, args.paced_gbps, args.link_latency_us)
    with Opened(port, [setting], options_of(args)) as here:
        here.warm_up(setting)
        with profile(activities=activities) as found:
            here.machine(setting).run()
    return found


def main(argv: list[str]) -> None:
    """The command."""
    found = profiled(argv)
    found.export_chrome_trace("profile.json.gz")
    rows = found.key_averages()
    print(rows.table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))
    figures = [
        {
            "name": row.key,
            "count": row.count,
            "host_us": row.self_cpu_time_total,
            "device_us": row.self_device_time_total,
        }
        for row in sorted(rows, key=lambda row: -(row.self_cpu_time_total + row.self_device_time_total))
    ]
    write_bytes("kernels.json", (json.dumps(figures, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
