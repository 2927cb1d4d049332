"""python -m runtime.gpu.parts.here: which GPU and which versions are here, as one JSON object of strings."""

import json
import platform
import sys

import torch


def here() -> dict[str, str]:
    """What makes results comparable. `gpu` is empty where torch finds none."""
    found = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if found else "",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip or ""),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    json.dump(here(), sys.stdout)
