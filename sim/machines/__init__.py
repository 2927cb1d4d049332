"""The virtual machines and the record that they write. What running one compiles is said (sim.compiling)."""

import sim.compiling  # noqa: F401  # whoever imports it has it said
