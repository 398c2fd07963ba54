"""What a comparison is asked to do."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from bico_ext.bounds import BOUNDS, check_bounds
from bico_ext.comparison.systems import SYSTEMS, named
from bico_ext.objectives.denoising import check_mask_rate

HEADS = 4  # of the tiny model

# What depends on the setting and the data set; everything else is the same. Sources: docs/experiments.md.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("scratch", "synthetic"): {"layers": 2, "learning_rate": 2e-3, "steps": 3000, "replay": 0.0},
    ("scratch", "other"): {"layers": 4, "learning_rate": 3e-3, "steps": 1500, "replay": 0.0},
    ("pretrained", "synthetic"): {"layers": 2, "learning_rate": 3e-3, "steps": 3000, "replay": 0.5},
    ("pretrained", "other"): {"layers": 4, "learning_rate": 3e-3, "steps": 1500, "replay": 0.5},
}


@dataclass(frozen=True)
class CompareConfig:
    """Train the same initial models with several systems and evaluate all of them on the same questions.

    `None` takes the preset of the setting and the data set (`PRESETS`).

    Raises:
        ValueError: an unknown system, a repeated seed or system, a number out of range.
    """

    output_dir: str = field(metadata={"help": "Where results, predictions, table and pictures go."})
    data: str = field(
        default="synthetic",
        metadata={"help": "'synthetic', a folder of facts, a file (.jsonl, .txt, .csv) or a hub name."},
    )
    systems: list[str] = field(
        default_factory=lambda: ["ntp", "bico", "infill", "permute"],
        metadata={"help": "What to compare: names of the list below, or 'all'.", "aliases": ["--objectives"]},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Seeds of initial weights, order and masks."}
    )
    setting: str = field(
        default="scratch",
        metadata={
            "help": "'scratch': the facts are all that the model ever reads. 'pretrained': it first learns texts about "
            "other entities, in both orders, by NTP; then it is fine-tuned on facts in one order only, and on some of "
            "those texts again (replay).",
            "choices": ["scratch", "pretrained"],
        },
    )
    model: str = field(
        default="tiny", metadata={"help": "'tiny' (a random Llama and a word tokenizer), a path or a hub name."}
    )
    steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps after any pre-training; 3,000 (synthetic) or 1,500."}
    )
    learning_rate: float | None = field(default=None, metadata={"help": "Peak; 2e-3 (synthetic from scratch) or 3e-3."})
    pretrain_steps: int = field(default=1500, metadata={"help": "Of the pre-training in the setting 'pretrained'."})
    pretrain_learning_rate: float = field(default=3e-3, metadata={"help": "Peak of the pre-training."})
    replay: float | None = field(
        default=None,
        metadata={
            "help": "Share of the fine-tuning texts that are drawn from those of the pre-training, as far as there are "
            "so many; 1/2 with setting 'pretrained'. 0: fine-tuning reads the new facts only."
        },
    )
    layers: int | None = field(default=None, metadata={"help": "Of the tiny model; 2 (synthetic) or 4."})
    hidden_size: int = field(default=128, metadata={"help": "Of the tiny model, which has 4 heads."})
    batch_size: int = field(default=32, metadata={"help": "Rows an optimizer step."})
    mask_rate: float | str = field(
        default=0.3,
        metadata={"help": "Of 'bico' and its controls, or 'uniform'. The library's default is the paper's 0.15."},
    )
    infill_spans: int = field(default=1, metadata={"help": "Spans that 'infill' writes in a text."})
    permute_segments: int = field(default=4, metadata={"help": "Most pieces that 'permute' cuts a text into."})
    mixing_probability: float | None = field(
        default=None,
        metadata={
            "help": "Of the objective, at each optimizer step; default: the system's own, 1/2 but for permute, 2/3. "
            "glm-abi always trains its objective alone."
        },
    )
    weight_decay: float = field(default=0.1, metadata={"help": "Of AdamW, betas 0.9 and 0.98."})
    warmup_steps: int = field(default=50, metadata={"help": "Before the cosine decay to 0."})
    bf16: bool = field(default=True, metadata={"help": "Train under bfloat16 autocast; evaluation is in float32."})
    max_new_tokens: int = field(default=40, metadata={"help": "Of an answer; 40 in the official script."})
    curve_points: int = field(default=10, metadata={"help": "Of the learning curves; 0: none."})
    jobs: int | None = field(
        default=None, metadata={"help": "Runs at once, which share the cores; default: one a core."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Keep the finished runs that output_dir holds and add the missing ones."}
    )

    def __post_init__(self) -> None:
        if self.setting not in ("scratch", "pretrained"):
            raise ValueError(f"setting must be 'scratch' or 'pretrained', got {self.setting!r}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more, each once, got {list(self.seeds)}")
        if not all(0 <= seed < 2**32 for seed in self.seeds):  # what NumPy takes
            raise ValueError(f"seeds must be in [0, 2**32), got {list(self.seeds)}")
        preset = PRESETS[self.setting, "synthetic" if self.data == "synthetic" else "other"]
        taken = {name: value for name, value in preset.items() if getattr(self, name) is None}
        taken |= {"systems": named(self.systems), "mask_rate": check_mask_rate(self.mask_rate)}
        for name, value in taken.items():
            object.__setattr__(self, name, value)
        check_bounds(**{name: getattr(self, name) for name in BOUNDS if hasattr(self, name)})
        if self.model != "tiny":
            others = [name for name in self.systems if SYSTEMS[name].family != "llama"]
            if others:
                raise ValueError(
                    f"systems {', '.join(others)} are of another model than {self.model}, and exist for "
                    "model='tiny' only; leave them out"
                )
        if any(SYSTEMS[name].objective == "abi" for name in self.systems) and self.hidden_size % (8 * HEADS):
            raise ValueError(
                f"hidden_size must be a multiple of {8 * HEADS} for abi, whose two positions share half of GLM's head, "
                f"got {self.hidden_size}"
            )
        if self.hidden_size < 1 or self.hidden_size % (2 * HEADS):
            raise ValueError(f"hidden_size must be a multiple of {2 * HEADS} ({HEADS} heads), got {self.hidden_size}")
        if self.replay and self.setting != "pretrained":
            raise ValueError(
                f"replay must be 0 without pre-training, got {self.replay}; leave it out or use setting='pretrained'"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a run's numbers: all but where they go, and which runs are asked for."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in ("output_dir", "systems", "seeds", "jobs", "resume")
        }
