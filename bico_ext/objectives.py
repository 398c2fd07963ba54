"""The objectives by name: what a training step asks of the model.

An objective turns one token sequence into inputs, labels and span ids (`bico_ext.masked.Masked`). It draws from the
generator that it is given and from nothing else. A new one is a function beside its kin (`causal`, `denoising`,
`infilling`, `blank_infilling`) and a line in `OBJECTIVES`.
"""

import inspect
from collections.abc import Callable
from functools import partial

from torch import Generator, Tensor

from bico_ext.blank_infilling import abi
from bico_ext.causal import ntp, permute, reverse
from bico_ext.denoising import attended_pad, bert, bico, naive, new_token
from bico_ext.infilling import infill
from bico_ext.masked import Masked

Objective = Callable[[Tensor, Generator], Masked]

OBJECTIVES: dict[str, Callable[..., Masked]] = {
    "ntp": ntp,
    "bico": bico,
    "infill": infill,
    "permute": permute,
    "abi": abi,
    "naive": naive,
    "bert": bert,
    "attended-pad": attended_pad,
    "new-token": new_token,
    "reverse": reverse,
}


def check_objective(name: str) -> None:
    """Raise a ValueError that lists the known objectives when `name` is not one of them."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {name!r}")


def options(name: str) -> tuple[str, ...]:
    """The keyword-only options of the objective `name`, in the order of its signature.

    Example:
        >>> options("bico")
        ('placeholder_id', 'special_ids', 'mask_rate')
    """
    check_objective(name)
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def bind(name: str, **available: object) -> Objective:
    """The objective `name` with its options filled in from `available`; those that it does not take are left out.

    Args:
        name: a key of `OBJECTIVES`.
        available: values of every option that the caller knows, such as `placeholder_id` and `mask_rate`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> bind("infill", mask_rate=0.3)(torch.tensor([2, 7]), torch.Generator()).labels
        tensor([-100,    7])
    """
    taken = {option: available[option] for option in options(name) if option in available}
    return partial(OBJECTIVES[name], **taken)
