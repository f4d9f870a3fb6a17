"""What both trainers say when a training cannot go on. Imports torch, but neither trainer."""

import torch

from cosmopedia.core.errors import DataError
from stages.train.recipe import Recipe
from stages.train.windows import TokenShards, WindowOrder

SHOWN_DOCUMENTS = 10


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory; on the CPU torch has no error class for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def no_number(recipe: Recipe, shards: TokenShards, order: WindowOrder, step: int, loss: float, norm: float) -> str:
    """The message for a step (from 1) whose loss or gradient is no number: where, on which documents, what to do."""
    windows = sorted({order[position] for position in range((step - 1) * recipe.batch, step * recipe.batch)})
    try:
        names = list(dict.fromkeys(name for window in windows for name in shards.documents(window)))
    except DataError as error:
        shown = f"unknown, as {error}"
    else:
        more = f" and {len(names) - SHOWN_DOCUMENTS} more" if len(names) > SHOWN_DOCUMENTS else ""
        shown = ", ".join(names[:SHOWN_DOCUMENTS]) + more
    return (
        f"train: the loss is {loss} and the gradient's norm {norm} at step {step} of {recipe.steps}; look at the"
        f" documents of its batch in data/decontaminate ({shown}); if nothing is wrong with them, lower"
        f" train.learning_rate (now {recipe.learning_rate:g}) or raise train.warmup_steps (now {recipe.warmup_steps})"
    )
