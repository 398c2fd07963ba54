"""The configuration of a comparison, which is also the command line of `bico compare`."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

from bico_ext.bounds import BOUNDS, check_bounds
from bico_ext.comparison.systems import SYSTEMS, select_systems
from bico_ext.files import expand_user
from bico_ext.objectives.denoising import check_mask_rate

HEADS = 4  # attention heads of the tiny model

_TINY: dict[str, Any] = {
    "hidden_size": 128,
    "facts": "all",
    "pretrain_learning_rate": 3e-3,
    "replay": 0.0,
    "mask_rate": 0.3,
    "weight_decay": 0.1,
    "adam_beta2": 0.98,
    "warmup_steps": 50,
    "eval_bf16": False,
    "curve_points": 10,
    "curve_questions": 60,
    "save_models": True,
}
_GIVEN: dict[str, Any] = {
    "facts": "all",
    "epochs": 8,
    "learning_rate": 3e-4,
    "pretrain_learning_rate": 3e-4,
    "replay": 0.0,
    "mask_rate": 0.15,
    "weight_decay": 0.01,
    "adam_beta2": 0.999,
    "warmup_steps": 20,
    "eval_bf16": True,
    "curve_points": 3,
    "curve_questions": 30,
    "save_models": False,
}
_PRETRAINED: dict[str, Any] = {"facts": "one-order", "replay": 0.5}
# The defaults that depend on the setting and on the data set or the model; all others are fixed. Sources:
# docs/experiments.md.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("scratch", "synthetic"): {**_TINY, "layers": 2, "learning_rate": 2e-3, "steps": 3000},
    ("scratch", "other"): {**_TINY, "layers": 4, "learning_rate": 3e-3, "steps": 1500},
    ("scratch", "given model"): _GIVEN,
    ("pretrained", "synthetic"): {**_TINY, **_PRETRAINED, "layers": 2, "learning_rate": 3e-3, "steps": 3000},
    ("pretrained", "other"): {**_TINY, **_PRETRAINED, "layers": 4, "learning_rate": 3e-3, "steps": 1500},
    ("pretrained", "given model"): {**_GIVEN, **_PRETRAINED},
}
# The options that do not determine a run's numbers.
_NOT_IN_SETTINGS = {"output_dir", "systems", "seeds", "save_models", "checkpoint_minutes", "jobs", "resume"}


@dataclass(frozen=True)
class CompareConfig:
    """Train the same initial models with several systems and evaluate all of them on the same questions.

    A field of `PRESETS` that is None takes the preset of the setting and of the data set, or of a given model.

    Raises:
        ValueError: a system is unknown, a system or a seed is repeated, a number is out of range, or options contradict
            each other.
    """

    output_dir: str = field(metadata={"help": "Folder for the results, predictions, tables, plots and trained models."})
    data: str = field(
        default="synthetic",
        metadata={
            "help": "'synthetic', 'invented', a folder of facts, a file (.jsonl, .txt, .csv or .tsv) or a hub name."
        },
    )
    systems: list[str] = field(
        default_factory=lambda: ["ntp", "bico", "infill", "permute"],
        metadata={"help": "Systems to compare: names from the list below, or 'all'.", "aliases": ["--objectives"]},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={
            "help": "Seeds. Each decides the initial weights of the tiny model, the order of the data, the masks, the "
            "replayed texts and the steps that train the objective."
        },
    )
    setting: str = field(
        default="scratch",
        metadata={
            "help": "'scratch': the model reads nothing but the facts. 'pretrained': it is first pre-trained by "
            "next-token prediction on texts about other entities, in both orders. Then it is fine-tuned on facts that "
            "are stated in one order only, mixed with some of the pre-training texts (replay). A given model can be "
            "trained in both settings.",
            "choices": ["scratch", "pretrained"],
        },
    )
    model: str = field(
        default="tiny",
        metadata={
            "help": "'tiny' (a small model with random weights and a word tokenizer), a path, a name of bico "
            "fetch-model or a hub name."
        },
    )
    lora: bool = field(
        default=False,
        metadata={
            "help": "Train LoRA adapters on all linear layers except lm_head (rank 32, alpha 16, dropout 0.01: the "
            "paper's) instead of all weights; needs PEFT."
        },
    )
    facts: str | None = field(
        default=None,
        metadata={
            "help": "Training texts; 'one-order' are those about entities that are stated in one order only. Default: "
            "'one-order' with setting 'pretrained', otherwise 'all'.",
            "choices": ["all", "one-order"],
        },
    )
    steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps, not counting pre-training. Default: 3,000 for the synthetic facts, otherwise "
            "1,500 (docs/experiments.md); for a given model, those of --epochs."
        },
    )
    epochs: int | None = field(
        default=None,
        metadata={
            "help": "The optimizer steps, as passes over the training texts. All systems make equally many, also one "
            "that reads more texts. Default for a given model: 8 (docs/experiments.md)."
        },
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate. Default: 2e-3 for the synthetic facts from scratch, 3e-4 for a given model, "
            "otherwise 3e-3 (docs/experiments.md)."
        },
    )
    pretrain_steps: int = field(
        default=1500,
        metadata={
            "help": "Optimizer steps of the pre-training with setting 'pretrained'; the default was chosen on seeds 0 "
            "and 1 (docs/experiments.md)."
        },
    )
    pretrain_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of the pre-training. Default: 3e-3, and 3e-4 for a given model "
            "(docs/experiments.md)."
        },
    )
    replay: float | None = field(
        default=None,
        metadata={
            "help": "Share of the fine-tuning texts that is drawn from the pre-training texts, as far as there are "
            "enough of them. With 0, fine-tuning reads the new facts only. Default: 0.5 with setting 'pretrained', "
            "chosen on seeds 0 and 1 (docs/experiments.md), otherwise 0."
        },
    )
    layers: int | None = field(
        default=None,
        metadata={
            "help": "Layers of the tiny model. Default: 2 for the synthetic facts, otherwise 4 (docs/experiments.md). "
            "A given model has its own."
        },
    )
    hidden_size: int | None = field(
        default=None,
        metadata={
            "help": "Width of the tiny model, which has 4 attention heads. Default: 128 (docs/experiments.md). A given "
            "model has its own."
        },
    )
    batch_size: int = field(
        default=32, metadata={"help": "Texts per optimizer step; default from docs/experiments.md."}
    )
    mask_rate: float | str | None = field(
        default=None,
        metadata={
            "help": "Share of the tokens that 'bico' and its controls hide, or 'uniform': a rate drawn for each text. "
            "Default: 0.3 for the tiny model, as models trained from scratch reverse less with the paper's 0.15 "
            "(docs/understanding.md); 0.15 for a given model."
        },
    )
    infill_spans: int = field(default=1, metadata={"help": "Number of spans that 'infill' writes in a text."})
    permute_segments: int = field(
        default=4,
        metadata={
            "help": "Largest number of pieces that 'permute' cuts a text into; the default was chosen on seeds 0 and 1 "
            "(docs/experiments.md)."
        },
    )
    mixing_probability: float | None = field(
        default=None,
        metadata={
            "help": "Probability that an optimizer step trains the objective instead of next-token prediction. "
            "Default: the paper's 1/2, but 2/3 for permute (docs/experiments.md). glm-abi ignores this option: all of "
            "its steps train the objective."
        },
    )
    weight_decay: float | None = field(
        default=None,
        metadata={"help": "Weight decay of AdamW. Default: 0.1, and 0.01 for a given model (docs/experiments.md)."},
    )
    adam_beta2: float | None = field(
        default=None,
        metadata={
            "help": "Second beta of AdamW; the first is 0.9. Default: 0.98, and torch's 0.999 for a given model "
            "(docs/experiments.md)."
        },
    )
    warmup_steps: int | None = field(
        default=None,
        metadata={
            "help": "Warm-up steps, after which the learning rate falls to 0 along a cosine. Default: 50, and 20 for a "
            "given model (docs/experiments.md)."
        },
    )
    bf16: bool = field(default=True, metadata={"help": "Train under bfloat16 autocast; see also --eval_bf16."})
    eval_bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Evaluate under bfloat16 autocast, which can choose another of two almost equally likely tokens. "
            "Default: true for a given model, where it halves the time; otherwise false, which is float32."
        },
    )
    max_new_tokens: int = field(
        default=40,
        metadata={"help": "Largest number of tokens of an answer; the default is that of the paper's script."},
    )
    curve_points: int | None = field(
        default=None,
        metadata={
            "help": "Number of points of each learning curve; 0: no curves. Default: 10, and 3 for a given model."
        },
    )
    curve_questions: int | None = field(
        default=None,
        metadata={
            "help": "Questions of each task, drawn at random, per point of a learning curve. Default: 60, and 30 for a "
            "given model; the tiny model answers 60 in 1 to 2 seconds."
        },
    )
    save_models: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the trained models. Default: true, and false for a given model, which may fill a disk."
        },
    )
    checkpoint_minutes: float = field(
        default=5.0,
        metadata={
            "help": "Minutes between checkpoints, from which --resume continues a killed run. A finished run has none."
        },
    )
    jobs: int | None = field(
        default=None,
        metadata={
            "help": "Number of runs at once, which share the cores and the GPU. Default: one per core; 1 for a given "
            "model that trains on a GPU or has more than 20 million parameters."
        },
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "Keep the finished runs in output_dir, continue unfinished ones from their checkpoints and add the "
            "missing ones."
        },
    )

    def __post_init__(self) -> None:
        for name in ("output_dir", "data", "model"):
            object.__setattr__(self, name, expand_user(getattr(self, name)))
        if self.setting not in ("scratch", "pretrained"):
            raise ValueError(f"setting must be 'scratch' or 'pretrained', got {self.setting!r}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more, each once, got {list(self.seeds)}")
        if not all(0 <= seed < 2**32 for seed in self.seeds):  # the seeds that NumPy accepts
            raise ValueError(f"seeds must be in [0, 2**32), got {list(self.seeds)}")
        if self.facts not in (None, "all", "one-order"):
            raise ValueError(f"facts must be 'all' or 'one-order', got {self.facts!r}")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"steps and epochs both say how long to train, got {self.steps} and {self.epochs}; leave one out"
            )
        kind = "given model" if self.model != "tiny" else "synthetic" if self.data == "synthetic" else "other"
        resolved = {name: value for name, value in PRESETS[self.setting, kind].items() if getattr(self, name) is None}
        if self.steps is not None or self.epochs is not None:
            resolved = {name: value for name, value in resolved.items() if name not in ("steps", "epochs")}
        for name, value in {**resolved, "systems": select_systems(self.systems)}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "mask_rate", check_mask_rate(cast(float | str, self.mask_rate)))
        check_bounds(**{name: getattr(self, name) for name in BOUNDS if hasattr(self, name)})
        if self.model == "tiny":
            self._check_width(cast(int, self.hidden_size))
        else:
            for name in ("layers", "hidden_size"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} must be left out for {self.model!r}, which has its own, got {getattr(self, name)}"
                    )
            others = [name for name in self.systems if SYSTEMS[name].family != "llama"]
            if others:
                raise ValueError(
                    f"model must be 'tiny' for {', '.join(others)}, which train another kind of model, got "
                    f"{self.model!r}; leave them out of systems"
                )
        if self.replay and self.setting != "pretrained":
            raise ValueError(
                f"replay must be 0 without pre-training, got {self.replay}; leave it out or use setting='pretrained'"
            )

    def _check_width(self, width: int) -> None:
        if any(SYSTEMS[name].objective == "abi" for name in self.systems) and width % (8 * HEADS):
            raise ValueError(
                f"hidden_size must be a multiple of {8 * HEADS} for objective 'abi', whose two positions share half of "
                f"each of GLM's {HEADS} heads, got {width}"
            )
        if width < 1 or width % (2 * HEADS):
            raise ValueError(f"hidden_size must be a multiple of {2 * HEADS} ({HEADS} heads), got {width}")

    @property
    def settings(self) -> dict[str, Any]:
        """The options that determine a run's numbers."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _NOT_IN_SETTINGS}
