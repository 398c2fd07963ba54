"""The valid range of each numeric option: one table for the command line, the configurations and the functions."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """A condition on a number, and its description for error messages."""

    holds: Callable[[float], bool]
    text: str
    remedy: str = ""
    whole: bool = False  # an integer


def _at_least(least: int, remedy: str = "") -> Bound:
    return Bound(lambda value: value >= least, f"at least {least}", remedy, whole=True)


_SHARE = Bound(lambda value: 0 <= value <= 1, "in [0, 1]")
_FINITE = Bound(lambda value: 0 <= value < math.inf, "0 or more, and finite")
_SPANS = _at_least(1, "for no span use objective='ntp'")
_LENGTH = _at_least(1, "a segment has one token or more")
_SEGMENTS = _at_least(2, "for one segment use objective='ntp'")

BOUNDS: dict[str, Bound] = {
    # Training
    "steps": _at_least(1),
    "epochs": _at_least(1),
    "pretrain_steps": _at_least(1),
    "batch_size": _at_least(1),
    "max_length": Bound(lambda value: 2 <= value < 2**31, "in [2, 2**31)", whole=True),  # one is read, one predicted
    "mixing_probability": _SHARE,
    "learning_rate": _FINITE,
    "pretrain_learning_rate": _FINITE,
    "weight_decay": _FINITE,
    "adam_beta2": Bound(lambda value: 0 <= value < 1, "in [0, 1)"),
    "warmup_steps": _FINITE,
    "max_steps": Bound(
        lambda value: value == -1 or value >= 1, "at least 1", "leave it out to train whole epochs", whole=True
    ),
    "num_train_epochs": Bound(lambda value: 0 < value < math.inf, "more than 0, and finite"),
    "per_device_train_batch_size": _at_least(1),
    "gradient_accumulation_steps": _at_least(1),
    "lora_r": _at_least(1),
    "lora_alpha": Bound(lambda value: 0 < value < math.inf, "more than 0, and finite"),
    "lora_dropout": Bound(lambda value: 0 <= value < 1, "in [0, 1)"),
    "replay": Bound(lambda value: 0 <= value < 1, "in [0, 1), a share of the fine-tuning texts", "0 leaves it out"),
    # Objectives
    "infill_spans": _SPANS,
    "spans": _SPANS,
    "permute_segments": _SEGMENTS,
    "segments": _SEGMENTS,
    "reverse_segment_length": _LENGTH,
    "segment_length": _LENGTH,
    # Generation and evaluation
    "max_new_tokens": _at_least(1),
    "samples": _at_least(1),
    # The probe
    "attention_samples": _at_least(1),
    "detail_samples": _at_least(2),  # layers are chosen on one half of them
    "detail_length": _at_least(18),  # 8 tokens on both sides of a query after the first token
    "length": _at_least(2),
    "tokens": _at_least(1),
    # The comparison
    "layers": _at_least(1),
    "jobs": _at_least(1, "leave it out for the default"),
    "curve_points": _at_least(0),
    "curve_questions": _at_least(1),
    "checkpoint_minutes": _FINITE,
}


def check_bounds(**options: Any) -> None:
    """Raise an error if an option is not a number, or out of range.

    Args:
        options: maps option names (keys of `BOUNDS`) to values. None stands for the default and is always accepted.

    Raises:
        TypeError: a value is not a number, or not an integer where one is needed.
        ValueError: a value is out of range. The message names the option, the range, the value and the way out.

    Example:
        >>> check_bounds(steps=100, batch_size=None)
        >>> check_bounds(permute_segments=1)
        Traceback (most recent call last):
        ValueError: permute_segments must be at least 2, got 1; for one segment use objective='ntp'
    """
    for name, value in options.items():
        if value is None:
            continue
        bound = BOUNDS[name]
        kind: Any
        kind, described = (numbers.Integral, "an integer") if bound.whole else (numbers.Real, "a number")
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} must be {described}, {bound.text}, got {value!r:.60}")
        if not bound.holds(value):
            raise ValueError(
                f"{name} must be {bound.text}, got {value}" + (f"; {bound.remedy}" if bound.remedy else "")
            )
