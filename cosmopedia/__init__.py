"""What the stages share: tables, prompts' requests, the completion store, execution, the CPU server, the command.

Importing it switches the telemetry of every library that the stages use off, before one of them is imported. It also
lets OpenMP's threads sleep while they wait: spinning ones make torch ten times slower on two cores as soon as another
process wants one of them (train: 0.13 against 1.6 steps/s), and are no faster on idle ones. What torch.compile makes
goes to the user's cache folder; torch's default, /tmp/torchinductor_<user>, can be made by anybody before.
"""

import os

CACHES = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # Arrow's own keeps memory for each thread that ever read a table
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHES}/torchinductor",
    "TOKENIZERS_PARALLELISM": "false",  # tokenizers are used next to forked workers; the pools would dead-lock
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
