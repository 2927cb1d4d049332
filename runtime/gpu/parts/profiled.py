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
from runtime.replay import Options, arguments, prepared
from sim.flags import spec_of
from sim.prepare import prepare
from traces.command import write_bytes


def profiled(argv: list[str]) -> Any:
    """The profile of one run, after a warm-up that is not profiled."""
    args = arguments().parse_args(argv)
    options = Options(args.scale, args.alias_host, args.weights, args.expert_kernel, host_bytes=args.host_memory)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    port = choose(args.device, args.link_gbps, args.link_latency_us)
    with prepared(prepare(spec_of(args)), port, options) as here:
        here.warm_up()
        with profile(activities=activities) as found:
            here.machine().run()
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
