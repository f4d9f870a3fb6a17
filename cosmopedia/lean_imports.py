"""Imports without what nobody here uses of them: of transformers, and with `hidden` of other packages.

With a model class transformers imports scikit-learn for assisted decoding, SciPy for the losses of object detection
and, through accelerate, boto3 for SageMaker: 3 of 10 CPU seconds of each process that loads a model (Zen 3, two shared
cores), and 150 of 500 MB. It looks for them when it is first imported, and does without what it does not find.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("sklearn", "scipy", "boto3")


def import_transformers() -> None:
    """Import transformers and its models' common code; to be called before anything is imported from it.

    Nothing changes in a process that has imported transformers already, nor for what imports one of `UNUSED` itself.
    """
    if "transformers" not in sys.modules:
        with hidden(UNUSED):
            importlib.import_module("transformers.modeling_utils")


@contextmanager
def hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Whoever looks for one of these packages in the block does not find it."""
    before = {name: sys.modules[name] for name in packages if name in sys.modules}
    for name in packages:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(before)
