"""SLURM executor: plans as job arrays by submitit. It knows steps, not methods."""
