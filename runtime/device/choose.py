"""Which port a device's name means."""

import torch

from runtime.device.accelerator import AcceleratorPort, current
from runtime.device.cpu import CpuPort, OneStreamPort
from runtime.device.port import Port
from traces.errors import UserError

LINK_GBPS, LINK_LATENCY_US = 25.0, 10.0  # pace of the CPU's copy engine, unless another is given


def choose(device: str = "auto", link_gbps: float | None = None, link_latency_us: float = LINK_LATENCY_US) -> Port:
    """The port of a device by name: `auto` takes the accelerator where there is one.

    Raises UserError when the device is not here, or when a pace is asked of a real link.
    """
    found = current()
    if device == "auto":
        device = "cpu" if found is None else found.type
    if device == "cpu":
        return CpuPort(LINK_GBPS if link_gbps is None else link_gbps, link_latency_us)
    if found is None or device != found.type:
        here = "cpu" if found is None else f"cpu and {found.type}"
        raise UserError(f"device: {device}: is not here; torch {torch.__version__} finds {here}")
    if link_gbps is not None:
        raise UserError(f"link-gbps: {link_gbps:g}: paces the copies of --device cpu; {device} has a real link")
    return OneStreamPort(found) if found.type == "mps" else AcceleratorPort(found)
