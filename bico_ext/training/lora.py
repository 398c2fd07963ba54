"""The LoRA adapters of the paper, for `bico train` and `bico compare`."""

from typing import TYPE_CHECKING

from bico_ext.bounds import check_bounds
from bico_ext.extras import install

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(rank: int = 32, alpha: int = 16, dropout: float = 0.01) -> "LoraConfig":
    """Return the configuration of LoRA adapters on all linear layers except the output head.

    Args:
        rank: the rank of the adapters; default 32, as in the paper.
        alpha: the scale of the adapters times their rank; default 16, as in the paper.
        dropout: the dropout rate of the adapters' input; default 0.01, as in the paper.

    Returns:
        The configuration, for `BicoTrainer(peft_config=...)`.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: a value is not a number.
        ValueError: a number is out of range.

    Example:
        >>> lora_config().r
        32
    """
    check_bounds(lora_r=rank, lora_alpha=alpha, lora_dropout=dropout)
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(f"LoRA adapters need PEFT: {install('lora')}") from error
    return LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
    )
