"""Slurm: its commands, the fleet of servers, the driver that runs `dvc repro` as a job."""
