"""What tests of models share: hardware of fixed durations."""

from pathlib import Path

FIXED = """[fixed]
dense_ns = 1000
decide_ns = 100
expert_ns = 300
transfer_ns = 2500
head_ns = 500
group_ns = 50
cpu_expert_ns = {cpu_expert_ns}
expert_bytes = 10
low_transfer_ns = 900
low_expert_ns = 200
low_bytes = 3
"""


def fixed_hardware(folder: Path, cpu_expert_ns: int) -> str:
    """The path of a hardware file of fixed durations."""
    path = folder / "fixed.toml"
    path.write_text(FIXED.format(cpu_expert_ns=cpu_expert_ns))
    return str(path)
