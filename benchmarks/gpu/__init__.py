"""Everything that is worth measuring on a machine with an NVIDIA GPU, in one unattended run."""
