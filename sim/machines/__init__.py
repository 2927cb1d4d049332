"""The virtual machines and the record that they write. What running one compiles is said (sim.compiling)."""

from sim.core import jit

jit.BESIDE_NUMBA.append("sim.compiling")  # whoever compiles has it said
