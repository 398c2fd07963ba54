"""`BicoConfig`: the training arguments of `BicoTrainer`."""

from dataclasses import dataclass, field
from typing import get_args

from transformers import TrainingArguments

from bico_ext.bounds import check_bounds
from bico_ext.objectives import registry
from bico_ext.objectives.blank_infilling import Positions, check_positions
from bico_ext.objectives.denoising import check_mask_rate


@dataclass
class BicoConfig(TrainingArguments):
    """Training arguments of `BicoTrainer`: those of transformers and the fields below.

    Inherited defaults that change: `remove_unused_columns` False (rows are turned into inputs after the data loader),
    `logging_nan_inf_filter` False (a NaN loss shows in the log instead of being replaced by the mean),
    `logging_steps` 10, and `dataloader_pin_memory` False (the data loader hands out rows, not the batch).

    Attributes:
        objective: a key of `bico_ext.objectives.registry.OBJECTIVES`; default "bico".
        mixing_probability: of the objective rather than next-token prediction, per optimizer step; default 0.5
            (the paper's).
        mask_rate: share of the tokens that "bico" and its controls hide, in (0, 1], default 0.15 (the paper's); or
            "uniform", a rate drawn for each sequence.
        infill_spans: spans that "infill" writes in a sequence; default 1.
        permute_segments: most pieces that "permute" cuts a sequence into; default 4.
        abi_positions: of "abi": "2d" (default, ChatGLM-6B's) or "in-place".
        entities_file: text file of names, one a line, that "reverse" keeps whole; default None.
        placeholder_id: the token id that stands for hidden tokens; default the tokenizer's padding id.
        max_length: tokens of a row that are kept; default None: all.

    Raises:
        ValueError: an unknown objective, or a number out of its range.

    Example:
        >>> BicoConfig(output_dir="out", objective="infill", max_steps=1500).mixing_probability
        0.5
    """

    # Model
    placeholder_id: int | None = field(
        default=None,
        metadata={
            "help": "Token id that replaces hidden tokens with objective='bico'. Default: the tokenizer's padding id; "
            "the official code uses 0. Nothing attends to it, so no embedding has to be added."
        },
    )

    # Data
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longer rows are cut to their first max_length tokens, losing their end-of-sequence token. "
            "Default: no cut, and an error when a row is longer than the model's context."
        },
    )

    # Training
    objective: str = field(
        default="bico",
        metadata={
            "help": "What the optimizer steps that are not next-token prediction train: 'bico' (denoising of hidden "
            "tokens, the paper's), 'infill' (a span written with both sides in view), 'permute' (pieces of the text in "
            "another order), 'ntp' (nothing else), or another one of "
            "docs/objectives.md.",
            "choices": list(registry.OBJECTIVES),
        },
    )
    mixing_probability: float = field(
        default=0.5,
        metadata={"help": "Probability of the objective, instead of next-token prediction, at an optimizer step."},
    )
    mask_rate: float | str = field(
        default=0.15,
        metadata={
            "help": "Probability that 'bico' and its controls hide a token, in (0, 1]; 'uniform': drawn for each row."
        },
    )
    infill_spans: int = field(default=1, metadata={"help": "Spans that 'infill' writes in a row."})
    permute_segments: int = field(default=4, metadata={"help": "Most pieces that 'permute' cuts a row into."})
    abi_positions: str = field(
        default="2d",
        metadata={
            "help": "Of 'abi': '2d' as in ChatGLM-6B, or 'in-place', the place that the text had.",
            "choices": list(get_args(Positions)),
        },
    )
    entities_file: str | None = field(
        default=None, metadata={"help": "Text file of names, one a line, that 'reverse' keeps whole."}
    )

    # Inherited defaults that change
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Must stay False: rows become model inputs only after the data loader."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether to replace NaN and infinite losses in the log, which hides them."}
    )
    logging_steps: float = field(
        default=10,
        metadata={"help": "Log every so many optimizer steps; a number below 1 is a share of all steps."},
    )
    dataloader_pin_memory: bool = field(
        default=False, metadata={"help": "Of no use here: the batch is built after the data loader."}
    )

    def __post_init__(self) -> None:
        registry.check_objective(self.objective)
        self.mask_rate = check_mask_rate(self.mask_rate)
        check_positions(self.abi_positions)
        check_bounds(
            infill_spans=self.infill_spans,
            permute_segments=self.permute_segments,
            mixing_probability=self.mixing_probability,
            max_length=self.max_length,
        )
        if "inputs" in (self.include_for_metrics or []):
            raise ValueError("include_for_metrics must not hold 'inputs': a batch is rows until its objective is known")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: rows become model inputs only after the data loader")
        super().__post_init__()
