"""The third machine: a plan replayed on a device."""
