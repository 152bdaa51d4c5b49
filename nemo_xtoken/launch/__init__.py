"""Starting runs on clusters: what to ask Slurm for, the scripts that ask for it, and ranks from Slurm's variables.

Only ``executors`` needs nemo_run; the rest works on a login node that has this package, pyyaml and omegaconf alone.
"""
