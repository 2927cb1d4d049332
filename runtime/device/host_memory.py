"""Memory that the host still has; the standard library alone, for those who must say what a bare machine lacks."""

import os
from pathlib import Path

INFO = Path("/proc/meminfo")


def meminfo() -> dict[str, str]:
    """Linux's own words by name, as {"MemAvailable": "1024 kB"}; empty where there are none."""
    try:
        lines = (line.split(":", 1) for line in INFO.read_text().splitlines())
        return {name.strip(): said.strip() for name, said in lines}
    except (OSError, ValueError):
        return {}


def available_bytes() -> int | None:
    """What the kernel says can still be had, None where it says nothing."""
    said = meminfo().get("MemAvailable")
    return None if said is None else int(said.split()[0]) * 1024


def host_bytes() -> int:
    """Memory that this process can still have: what the system has to give, and what a control group leaves."""
    left = available_bytes()
    if left is None:
        left = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        stat = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
        left = min(left, int(most) - int(used.read_text()) + int(stat.get("inactive_file", 0)))
    return left
