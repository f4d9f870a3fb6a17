"""Launching: jobs on Slurm, their templates, and the servers that they run."""
