"""What both trainers say when a training cannot go on. Needs torch, but neither trainer."""

import torch

from cosmopedia.errors import DataError
from stages.train.recipe import Recipe
from stages.train.shards import TokenShards, WindowOrder

SHOWN_DOCUMENTS = 10


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python could not get memory; on the CPU torch has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def no_number(recipe: Recipe, shards: TokenShards, order: WindowOrder, step: int, loss: float, norm: float) -> str:
    """What to say of a step (from 1) whose loss or gradient is no number: where, on which documents, what to do."""
    windows = sorted({order[place] for place in range((step - 1) * recipe.batch, step * recipe.batch)})
    try:
        found = list(dict.fromkeys(name for window in windows for name in shards.documents(window)))
    except DataError as error:
        shown = f"unknown, as {error}"
    else:
        more = f" and {len(found) - SHOWN_DOCUMENTS} more" if len(found) > SHOWN_DOCUMENTS else ""
        shown = ", ".join(found[:SHOWN_DOCUMENTS]) + more
    return (
        f"train: the loss is {loss} and the gradient's norm {norm} at step {step} of {recipe.steps}; look at the"
        f" documents of its batch in data/decontaminate ({shown}); if nothing is wrong with them, lower"
        f" train.learning_rate (now {recipe.learning_rate:g}) or raise train.warmup_steps (now {recipe.warmup_steps})"
    )
