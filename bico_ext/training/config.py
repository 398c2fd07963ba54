"""`BicoConfig`: the training arguments of `BicoTrainer`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from transformers import TrainingArguments

from bico_ext.bounds import check_bounds
from bico_ext.files import expand_user
from bico_ext.objectives import registry
from bico_ext.objectives.blank_infilling import Positions, check_positions
from bico_ext.objectives.denoising import check_mask_rate

# Numbers that transformers lets through, to fail later or to train to NaN.
_INHERITED_NUMBERS = (
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "weight_decay", "adam_beta2", "warmup_steps"),
)

LongRows = Literal["cut", "windows"]


@dataclass
class BicoConfig(TrainingArguments):
    """Training arguments of `BicoTrainer`: those of transformers and the fields below.

    Some inherited defaults change. `remove_unused_columns` is False, because rows become model inputs only after the
    data loader. `logging_nan_inf_filter` is False, so that the log shows a NaN loss instead of replacing it by the
    mean. `logging_steps` is 10. `dataloader_pin_memory` is False, because the data loader returns rows, not the batch.

    Attributes:
        objective: a key of `bico_ext.objectives.registry.OBJECTIVES`; default "bico".
        mixing_probability: probability that an optimizer step trains the objective rather than next-token prediction;
            default 0.5, as in the paper.
        mask_rate: probability that "bico" and its controls hide a token, in (0, 1]; default 0.15, as in the paper.
            "uniform" draws a rate for each row.
        infill_spans: the number of spans that "infill" predicts in a row; default 1.
        permute_segments: the largest number of segments that "permute" cuts a row into; default 4.
        reverse_segment_length: the largest number of tokens of a segment of "reverse-segments"; default 25, as in the
            paper on reverse training.
        abi_positions: the positions of "abi": "2d" (default), as in ChatGLM-6B, or "in-place".
        entities_file: text file of names, one per line, whose words "reverse" keeps in order; default None.
        placeholder_id: the token id that replaces hidden tokens; default: the tokenizer's padding id.
        max_length: the largest number of tokens of a row; default None, which keeps all.
        long_rows: what happens to a row of more than `max_length` tokens. "cut" (default) keeps the first `max_length`.
            "windows" makes several rows of `max_length` consecutive tokens. The last may be shorter, and is left out,
            with a warning, if it has nothing to predict.
        assistant_only_loss: for rows with `messages`, predict the words of the assistant only; default False. The chat
            template must mark them with {% generation %}. Only for objectives that leave tokens at their places
            (`bico_ext.objectives.registry.IN_PLACE`).
        packing: train each micro-batch as one row of `per_device_train_batch_size` sequences without padding, which do
            not see each other; default False. Losses and gradients change by rounding only. Evaluation pads.

    Raises:
        FileNotFoundError: there is no entities_file of this name.
        TypeError: a value is not a number where one is needed.
        ValueError: the objective is unknown, or a number is out of range.

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
            "help": "The largest number of tokens of a row. Longer rows are cut, and lose their end-of-sequence token, "
            "or split (long_rows). Default: no limit, and an error if a row is longer than the model's context."
        },
    )
    long_rows: str = field(
        default="cut",
        metadata={
            "help": "What happens to a row of more than max_length tokens: 'cut' keeps the first max_length, 'windows' "
            "splits it into consecutive rows of at most max_length tokens.",
            "choices": list(get_args(LongRows)),
        },
    )
    assistant_only_loss: bool = field(
        default=False,
        metadata={"help": "For rows with messages, predict the words of the assistant only."},
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "Train each micro-batch as one row without padding; its sequences do not see each other. Losses "
            "and gradients change by rounding only."
        },
    )

    # Training
    objective: str = field(
        default="bico",
        metadata={
            "help": "Objective of the optimizer steps that do not train next-token prediction: 'bico' (denoising of "
            "hidden tokens, as in the paper), 'infill' (prediction of a span from the context on both sides), "
            "'permute' (prediction of the text's segments in another order), 'ntp' (next-token prediction in all "
            "steps), or another one of docs/objectives.md.",
            "choices": list(registry.OBJECTIVES),
        },
    )
    mixing_probability: float = field(
        default=0.5,
        metadata={"help": "Probability that an optimizer step trains the objective instead of next-token prediction."},
    )
    mask_rate: float | str = field(
        default=0.15,
        metadata={
            "help": "Probability that 'bico' and its controls hide a token, in (0, 1]; 'uniform' draws it for each row."
        },
    )
    infill_spans: int = field(default=1, metadata={"help": "Number of spans that 'infill' predicts in a row."})
    permute_segments: int = field(
        default=4, metadata={"help": "Largest number of segments that 'permute' cuts a row into."}
    )
    reverse_segment_length: int = field(
        default=25, metadata={"help": "Largest number of tokens of a segment of 'reverse-segments'."}
    )
    abi_positions: str = field(
        default="2d",
        metadata={
            "help": "Positions of 'abi': '2d' as in ChatGLM-6B, or 'in-place', the positions in the original text.",
            "choices": list(get_args(Positions)),
        },
    )
    entities_file: str | None = field(
        default=None, metadata={"help": "Text file of names, one per line, whose words 'reverse' keeps in order."}
    )

    # Inherited defaults that change
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Must stay False, because rows become model inputs only after the data loader."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Replace NaN and infinite losses in the log, which hides them."}
    )
    logging_steps: float = field(
        default=10,
        metadata={"help": "Number of optimizer steps between logs; a number below 1 is a fraction of all steps."},
    )
    dataloader_pin_memory: bool = field(
        default=False, metadata={"help": "Has no effect here, because the batch is built after the data loader."}
    )

    def __post_init__(self) -> None:
        registry.check_objective(self.objective)
        self.mask_rate = check_mask_rate(self.mask_rate)
        check_positions(self.abi_positions)
        if self.assistant_only_loss and self.objective not in registry.IN_PLACE:
            raise ValueError(
                f"assistant_only_loss needs an objective that leaves tokens at their places "
                f"({', '.join(registry.IN_PLACE)}), got {self.objective!r}"
            )
        if self.long_rows not in get_args(LongRows):
            raise ValueError(f"long_rows must be 'cut' or 'windows', got {self.long_rows!r}")
        if self.long_rows == "windows" and self.max_length is None:
            raise ValueError("long_rows='windows' needs the length of a window; set max_length")
        if self.entities_file is not None and not Path(expand_user(self.entities_file)).is_file():
            raise FileNotFoundError(f"entities_file {self.entities_file}: no such file")
        check_bounds(
            infill_spans=self.infill_spans,
            permute_segments=self.permute_segments,
            reverse_segment_length=self.reverse_segment_length,
            mixing_probability=self.mixing_probability,
            max_length=self.max_length,
            **{name: getattr(self, name) for name in _INHERITED_NUMBERS},
        )
        if "inputs" in (self.include_for_metrics or []):
            raise ValueError(
                "include_for_metrics must not contain 'inputs', because the data loader returns rows, not model inputs"
            )
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns must be False, because rows become model inputs only after the data loader"
            )
        super().__post_init__()
