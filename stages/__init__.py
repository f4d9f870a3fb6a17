"""Cosmopedia on DVC: one module a stage, one room a subject.

The modules beside this file are the pipeline, one per stage of `dvc.yaml` (`python -m stages.prompts`). The folders
are the rooms that stages share: `tables` (parquet contracts), `seeds` (one reader a seed source), `prompting`
(templates), `clustering`, `serving`, `corpus`, `training`, `evaluation`, `reporting`.

Importing the package switches the telemetry of every library that the stages use off, before one of them is imported.
"""

import os

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # tokenizers are used next to forked workers; the pools would dead-lock
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}
for name, value in QUIET.items():
    os.environ.setdefault(name, value)
