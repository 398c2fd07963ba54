"""What every way of asking a model shares: evaluation mode, who shows progress, how many prompts at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# The 1,200 questions of Berglund et al. at 40 new tokens each, a 4-layer Llama of width 128, one CPU core, seconds:
# 5.3 with batches of 32, 3.9 with 64, 3.4 with 128, 3.8 with 300.
BATCH_SIZE = 128


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards, also after an error, each module is back in the mode that it was in.

    Inside, the model computes in the dtype of its weights: the autocast that accelerate leaves around the forward of
    a model trained with `bf16=True` or `fp16=True` is set aside, so that a model scores the same before and after it
    is saved.

    Args:
        model: any module; parts of it may be in other modes than the whole.

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
    """Whether this process is the one that shows progress: the only one, or the first of several."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
