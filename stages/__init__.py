"""Cosmopedia on DVC: one module a stage, one room a subject.

The modules beside this file are the pipeline, one per stage of `dvc.yaml` (`python -m stages.prompts`). The folders
are the rooms that stages share: `tables` (parquet contracts), `seeds` (one reader a seed source), `prompting`
(templates), `clustering`, `serving`, `corpus`, `training`, `evaluation`, `reporting`.

Importing the package switches the telemetry of every library that the stages use off, before one of them is imported.
It also lets OpenMP's threads sleep while they wait: spinning ones make torch ten times slower on two cores as soon as
another process wants one of them (train: 0.13 against 1.6 steps/s), and are no faster on idle ones.
"""

import os

SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # Arrow's own keeps memory for each thread that ever read a table
    "TOKENIZERS_PARALLELISM": "false",  # tokenizers are used next to forked workers; the pools would dead-lock
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
