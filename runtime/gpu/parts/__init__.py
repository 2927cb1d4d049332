"""What runs inside the parts of a GPU day: each a command of its own that writes its figures into its folder."""

NOT_HERE = 77  # the exit status of a part that cannot be on this machine, as automake has it; its last line says why
