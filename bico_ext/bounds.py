"""What numbers an option may have: one table for the command line, the configurations and the functions behind them."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """A condition and how a message words it."""

    holds: Callable[[float], bool]
    text: str


def _at_least(least: int) -> Bound:
    return Bound(lambda value: value >= least, f"at least {least}")


_SHARE = Bound(lambda value: 0 <= value <= 1, "in [0, 1]")
_FINITE = Bound(lambda value: 0 <= value < math.inf, "0 or more, and finite")

BOUNDS: dict[str, Bound] = {
    # Training
    "steps": _at_least(1),
    "pretrain_steps": _at_least(1),
    "batch_size": _at_least(1),
    "max_length": _at_least(2),  # one token is read, one predicted
    "mixing_probability": _SHARE,
    "learning_rate": _FINITE,
    "pretrain_learning_rate": _FINITE,
    "weight_decay": _FINITE,
    "warmup_steps": _FINITE,
    "replay": Bound(lambda value: 0 <= value < 1, "in [0, 1), a share of the fine-tuning texts"),
    # Objectives
    "infill_spans": _at_least(1),
    "permute_segments": _at_least(2),  # one piece is next-token prediction
    # Asking
    "max_new_tokens": _at_least(1),
    "samples": _at_least(1),
    # The comparison
    "layers": _at_least(1),
    "jobs": _at_least(1),
    "curve_points": _at_least(0),
}


def check_bounds(**options: float | None) -> None:
    """Refuse numbers out of range; None stands for a default and passes.

    Args:
        options: values by the option's name, a key of `BOUNDS`.

    Raises:
        ValueError: a value is out of its bound; the message names the option, the bound and the value.

    Example:
        >>> check_bounds(steps=100, batch_size=None)
        >>> check_bounds(permute_segments=1)
        Traceback (most recent call last):
        ValueError: permute_segments must be at least 2, got 1
    """
    for name, value in options.items():
        if value is not None and not BOUNDS[name].holds(value):
            raise ValueError(f"{name} must be {BOUNDS[name].text}, got {value}")
