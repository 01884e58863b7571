"""SLURM executor. Not part of this release: `flgbench run` offers the executors `local` and `inline`."""
