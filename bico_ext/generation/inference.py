"""Shared by generation and scoring: the batch size, evaluation mode, and which process shows progress."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Seconds for the 1,200 questions of Berglund et al. at 40 new tokens each, with a 4-layer Llama of width 128 on one CPU
# core: 5.3 with batches of 32, 3.9 with 64, 3.4 with 128, 3.8 with 300.
BATCH_SIZE = 128


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode; on exit, also after an error, restore the mode of each module.

    Inside the context the model computes in the dtype of its weights. accelerate wraps the forward of a model that was
    trained with `bf16=True` or `fp16=True` in autocast; that wrapper is removed in the meantime, so that a model has
    the same scores before and after it is saved.

    Args:
        model: any module; its parts may be in different modes.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluation_mode(model):
        ...     print(model.training)
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    wrapped = [module for module, _ in modes if {"forward", "_original_forward"} <= vars(module).keys()]
    forwards = [vars(module)["forward"] for module in wrapped]
    try:
        model.eval()
        for module in wrapped:
            module.forward = vars(module)["_original_forward"]
        yield
    finally:
        for module, forward in zip(wrapped, forwards, strict=True):
            module.forward = forward
        for module, mode in modes:
            module.training = mode


def is_rank_0() -> bool:
    """Return whether this process shows progress: it is the only process, or the first of several."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
