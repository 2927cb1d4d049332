"""python -m runtime.gpu.parts.synthetic MODEL FILE.npz: a routing trace in the shape of a catalog model."""

import sys

from runtime.measuring.cases import synthetic
from traces.format import npz

SEED = 1

if __name__ == "__main__":
    npz.write(sys.argv[2], synthetic(sys.argv[1], SEED))
