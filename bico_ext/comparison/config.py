"""The configuration of a comparison, which is also the command line of `bico compare`."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from bico_ext.bounds import BOUNDS, check_bounds
from bico_ext.comparison.systems import SYSTEMS, select_systems
from bico_ext.objectives.denoising import check_mask_rate

HEADS = 4  # attention heads of the tiny model

# The defaults that depend on the setting and the data set; all others are fixed. Sources: docs/experiments.md.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("scratch", "synthetic"): {"layers": 2, "learning_rate": 2e-3, "steps": 3000, "replay": 0.0},
    ("scratch", "other"): {"layers": 4, "learning_rate": 3e-3, "steps": 1500, "replay": 0.0},
    ("pretrained", "synthetic"): {"layers": 2, "learning_rate": 3e-3, "steps": 3000, "replay": 0.5},
    ("pretrained", "other"): {"layers": 4, "learning_rate": 3e-3, "steps": 1500, "replay": 0.5},
}


@dataclass(frozen=True)
class CompareConfig:
    """Train the same initial models with several systems and evaluate all of them on the same questions.

    A field of `PRESETS` that is None takes the preset of the setting and the data set.

    Raises:
        ValueError: a system is unknown, a system or a seed is repeated, or a number is out of range.
    """

    output_dir: str = field(metadata={"help": "Folder for the results, predictions, tables, plots and trained models."})
    data: str = field(
        default="synthetic",
        metadata={"help": "'synthetic', a folder of facts, a file (.jsonl, .txt, .csv or .tsv) or a hub name."},
    )
    systems: list[str] = field(
        default_factory=lambda: ["ntp", "bico", "infill", "permute"],
        metadata={"help": "Systems to compare: names from the list below, or 'all'.", "aliases": ["--objectives"]},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={
            "help": "Seeds. Each decides the initial weights, the order of the data, the masks, the replayed texts and "
            "the steps that train the objective."
        },
    )
    setting: str = field(
        default="scratch",
        metadata={
            "help": "'scratch': the model reads nothing but the facts. 'pretrained': it is first pre-trained by "
            "next-token prediction on texts about other entities, in both orders. Then it is fine-tuned on facts that "
            "are stated in one order only, mixed with some of the pre-training texts (replay).",
            "choices": ["scratch", "pretrained"],
        },
    )
    model: str = field(
        default="tiny",
        metadata={"help": "'tiny' (a small model with random weights and a word tokenizer), a path or a hub name."},
    )
    steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps, not counting pre-training. Default: 3,000 for the synthetic facts, otherwise "
            "1,500 (docs/experiments.md)."
        },
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate. Default: 2e-3 for the synthetic facts from scratch, otherwise 3e-3 "
            "(docs/experiments.md)."
        },
    )
    pretrain_steps: int = field(
        default=1500,
        metadata={
            "help": "Optimizer steps of the pre-training with setting 'pretrained'; the default was chosen on seeds 0 "
            "and 1 (docs/experiments.md)."
        },
    )
    pretrain_learning_rate: float = field(
        default=3e-3, metadata={"help": "Peak learning rate of the pre-training; default from docs/experiments.md."}
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
            "help": "Layers of the tiny model. Default: 2 for the synthetic facts, otherwise 4 (docs/experiments.md)."
        },
    )
    hidden_size: int = field(
        default=128,
        metadata={"help": "Width of the tiny model, which has 4 attention heads; default from docs/experiments.md."},
    )
    batch_size: int = field(
        default=32, metadata={"help": "Texts per optimizer step; default from docs/experiments.md."}
    )
    mask_rate: float | str = field(
        default=0.3,
        metadata={
            "help": "Share of the tokens that 'bico' and its controls hide, or 'uniform': a rate drawn for each text. "
            "The default is not the paper's 0.15, with which models trained from scratch reverse less "
            "(docs/understanding.md)."
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
    weight_decay: float = field(
        default=0.1,
        metadata={"help": "Weight decay of AdamW (betas 0.9 and 0.98); default from docs/experiments.md."},
    )
    warmup_steps: int = field(
        default=50,
        metadata={
            "help": "Warm-up steps, after which the learning rate falls to 0 along a cosine; default from "
            "docs/experiments.md."
        },
    )
    bf16: bool = field(
        default=True, metadata={"help": "Train under bfloat16 autocast. Evaluation always runs in float32."}
    )
    max_new_tokens: int = field(
        default=40,
        metadata={"help": "Largest number of tokens of an answer; the default is that of the paper's script."},
    )
    curve_points: int = field(default=10, metadata={"help": "Number of points of each learning curve; 0: no curves."})
    jobs: int | None = field(
        default=None, metadata={"help": "Number of runs at once, which share the cores. Default: one per core."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Keep the finished runs in output_dir and add the missing ones."}
    )

    def __post_init__(self) -> None:
        if self.setting not in ("scratch", "pretrained"):
            raise ValueError(f"setting must be 'scratch' or 'pretrained', got {self.setting!r}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more, each once, got {list(self.seeds)}")
        if not all(0 <= seed < 2**32 for seed in self.seeds):  # the seeds that NumPy accepts
            raise ValueError(f"seeds must be in [0, 2**32), got {list(self.seeds)}")
        preset = PRESETS[self.setting, "synthetic" if self.data == "synthetic" else "other"]
        resolved = {name: value for name, value in preset.items() if getattr(self, name) is None}
        resolved |= {"systems": select_systems(self.systems), "mask_rate": check_mask_rate(self.mask_rate)}
        for name, value in resolved.items():
            object.__setattr__(self, name, value)
        check_bounds(**{name: getattr(self, name) for name in BOUNDS if hasattr(self, name)})
        if self.model != "tiny":
            others = [name for name in self.systems if SYSTEMS[name].family != "llama"]
            if others:
                raise ValueError(
                    f"model must be 'tiny' for {', '.join(others)}, which train another kind of model, got "
                    f"{self.model!r}; leave them out of systems"
                )
        if any(SYSTEMS[name].objective == "abi" for name in self.systems) and self.hidden_size % (8 * HEADS):
            raise ValueError(
                f"hidden_size must be a multiple of {8 * HEADS} for objective 'abi', whose two positions share half of "
                f"each of GLM's {HEADS} heads, got {self.hidden_size}"
            )
        if self.hidden_size < 1 or self.hidden_size % (2 * HEADS):
            raise ValueError(f"hidden_size must be a multiple of {2 * HEADS} ({HEADS} heads), got {self.hidden_size}")
        if self.replay and self.setting != "pretrained":
            raise ValueError(
                f"replay must be 0 without pre-training, got {self.replay}; leave it out or use setting='pretrained'"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The options that determine a run's numbers: all but the output folder and the choice of runs."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in ("output_dir", "systems", "seeds", "jobs", "resume")
        }
