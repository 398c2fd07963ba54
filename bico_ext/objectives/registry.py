"""The objectives by name.

An objective turns one token sequence into a `TrainingSequence` (inputs, labels and span ids). Its only source of
randomness is the generator that it is given. To add an objective, write a function in the file of its family
(`causal`, `denoising`, `infilling`, `blank_infilling`) or in a new file, and add one line to `OBJECTIVES`.
"""

import inspect
from collections.abc import Callable
from functools import partial

from torch import Generator, Tensor

from bico_ext.objectives.blank_infilling import abi
from bico_ext.objectives.causal import ntp, permute, reverse, reverse_segments
from bico_ext.objectives.denoising import attended_pad, bert, bico, naive, new_token
from bico_ext.objectives.infilling import infill, infill_causal, infill_end, infill_end_causal, infill_naive
from bico_ext.objectives.training_sequence import TrainingSequence

Objective = Callable[[Tensor, Generator], TrainingSequence]

OBJECTIVES: dict[str, Callable[..., TrainingSequence]] = {
    "ntp": ntp,
    "bico": bico,
    "infill": infill,
    "permute": permute,
    "abi": abi,
    "naive": naive,
    "bert": bert,
    "attended-pad": attended_pad,
    "new-token": new_token,
    "infill-naive": infill_naive,
    "infill-causal": infill_causal,
    "infill-end": infill_end,
    "infill-end-causal": infill_end_causal,
    "reverse": reverse,
    "reverse-segments": reverse_segments,
}

# Objectives whose labels stand at the places of their tokens in the text, so that some tokens may be left out.
IN_PLACE = ("ntp", "bico", "naive", "attended-pad", "new-token", "infill", "infill-naive", "infill-causal")


def check_objective(name: str) -> None:
    """Raise a ValueError that lists the known objectives if `name` is not one of them."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {name!r}")


def option_names(name: str) -> tuple[str, ...]:
    """Return the names of an objective's keyword-only options, in the order of its signature.

    Example:
        >>> option_names("bico")
        ('placeholder_id', 'special_ids', 'mask_rate')
    """
    check_objective(name)
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def bind(name: str, **available: object) -> Objective:
    """Return an objective whose options are filled in from `available`.

    Args:
        name: a key of `OBJECTIVES`.
        available: values of the options that the caller knows, such as `placeholder_id` and `mask_rate`. Options that
            the objective does not take are ignored.

    Returns:
        A function of the input ids and a generator.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> import torch
        >>> bind("infill", mask_rate=0.3)(torch.tensor([2, 7]), torch.Generator()).labels
        tensor([-100,    7])
    """
    taken = {option: available[option] for option in option_names(name) if option in available}
    return partial(OBJECTIVES[name], **taken)
