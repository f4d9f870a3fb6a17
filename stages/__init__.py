"""The pipeline: a folder per stage of dvc.yaml, run as `python -m stages.<stage>`.

`stages/<stage>/__main__.py` says what goes in and what comes out; next to it lies what only that stage uses. A file
named `cosmo_*.py` is what a stage brings to the `cosmo` command; it changes no output, and DVC does not see it.
"""

import cosmopedia  # noqa: F401  (switches telemetry off before a stage imports anything)
