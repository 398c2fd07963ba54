"""Shared by generation and scoring: the batches, which process computes and shows what, and evaluation mode."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from bico_ext.models.checkpoints import check_adapters

_Item = TypeVar("_Item")
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

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


def check_loaded(model: Any, tokenizer: Any) -> None:
    """Check that these are a model and a tokenizer, and not their names, or one in place of the other.

    Raises:
        TypeError: one of them has another type, or the model has adapters as in `check_adapters`.

    Example:
        >>> check_loaded("smollm2-135m", None)
        Traceback (most recent call last):
        TypeError: model must be a transformers model, got str; load it with AutoModelForCausalLM.from_pretrained
    """
    for name, given, needed, loader in (
        ("model", model, "parameters", "AutoModelForCausalLM"),
        ("tokenizer", tokenizer, "batch_decode", "AutoTokenizer"),
    ):
        if not hasattr(given, needed):
            raise TypeError(
                f"{name} must be a transformers {name}, got {type(given).__name__}; load it with {loader}."
                "from_pretrained"
            )
    check_adapters(model)


def check_distributed(model: Any, distributed: bool) -> None:
    """Check that several processes can divide the work among them, if they are to.

    Raises:
        RuntimeError: there is no process group.
        ValueError: the model is sharded (its parameters are DTensors, as those of FSDP2 and of tensor parallelism). Its
            processes need each other in every forward pass, so none of them can answer questions of its own.
    """
    if not distributed:
        return
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError(
            "distributed=True needs a process group, got none; start the script with torchrun and call "
            "torch.distributed.init_process_group(), or leave distributed out"
        )
    from torch.distributed.tensor import DTensor

    sharded = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    if sharded:
        raise ValueError(
            f"distributed=True needs the whole model in each process, got a model whose {sharded[0]} is sharded; leave "
            "distributed out and call this on all processes, or save the model and load it whole"
        )


def own_batches(items: Sequence[_Item], batch_size: int, distributed: bool) -> list[Sequence[_Item]]:
    """Cut items into batches and return those of this process: all, or every Nth if N processes divide the work.

    The batches are those of one process, so their results are, too, without a difference by rounding.

    Args:
        items: the items in the order of the batches.
        batch_size: the number of items in a batch, at least 1; the last batch may have fewer.
        distributed: whether the processes of the process group divide the batches among them.

    Example:
        >>> own_batches("abcde", 2, distributed=False)
        ['ab', 'cd', 'e']
    """
    rank, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    starts = range(rank * batch_size, len(items), processes * batch_size)
    return [items[start : start + batch_size] for start in starts]


def gathered(own: dict[_Key, _Value], distributed: bool) -> dict[_Key, _Value]:
    """Return the results of all processes on each of them; without `distributed`, those of this process.

    Example:
        >>> gathered({"Who?": " Ada"}, distributed=False)
        {'Who?': ' Ada'}
    """
    if not distributed:
        return own
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return {key: value for part in parts for key, value in part.items()}


def cache_argument(model: Any) -> str:
    """Return the name of the model's cache argument, which transformers 5.24 renamed."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values"
