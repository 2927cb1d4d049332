"""Where an expert lies: its layout in memory, checkpoints, host memory and slots."""
