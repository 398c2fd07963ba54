"""One run of a comparison: the initial model of a seed, trained as a system says, asked the tasks' questions."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from bico_ext.comparison.config import HEADS, CompareConfig
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.evaluation.evaluate import evaluate
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import Example, FactData, Task
from bico_ext.files import write_text
from bico_ext.generation.blanks import generate_blank
from bico_ext.generation.greedy import generate
from bico_ext.models import checkpoints
from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.ops.attention import has_kernels
from bico_ext.reports.records import Run, run_from_json
from bico_ext.seeding import stream_seed
from bico_ext.training.config import BicoConfig
from bico_ext.training.trainer import BicoTrainer

CURVE_QUESTIONS = 60  # of each task, evenly spread over it, for a point of the learning curve: a second or two


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run's record, and its predictions as `predictions.jsonl` holds them."""

    run: Run
    predictions: list[dict[str, Any]]


def run(config: CompareConfig, name: str, seed: int, callbacks: Sequence[TrainerCallback] = ()) -> list[Finished]:
    """Train and evaluate the system `name` from the initial model of `seed`.

    Args:
        config: what to compare.
        name: a key of `SYSTEMS`.
        seed: of weights, order and masks.
        callbacks: for the trainer.

    Returns:
        The run; of a system with blank generation a second one, the same model asked by plain causal generation.
    """
    facts, system = facts_read(config, load_facts(config.data)), SYSTEMS[name]
    model, tokenizer = starting_model(config, facts, system.family, seed)
    new = [*facts.train, *(facts.other_order if system.other_order else ())]
    replayed = _replayed(facts.pretraining, cast(float, config.replay), len(new), seed)
    mixing = system.mixing_probability
    if config.mixing_probability is not None and mixing < 1:
        mixing = config.mixing_probability
    output = run_folder(config, name, seed)
    entities_file = None
    if system.entities:
        entities_file = output.with_name("entities.txt")
        write_text(entities_file, "".join(f"{entity}\n" for entity in entities(facts)))
    texts = [*new, *replayed]
    trainer = _trainer(config, system.objective, mixing, model, tokenizer, texts, seed, output, entities_file)
    # From scratch [MASK] is the blank that the objective has trained; [gMASK] it never sees.
    blank = partial(generate_blank, mask="mask")
    generators: dict[str, Callable[..., list[str]]]
    generators = {name: blank, f"{name}, asked causally": generate} if system.blank_generation else {name: generate}
    curve = _Curve(config, tokenizer, facts.tasks, generators[name])
    for callback in (*callbacks, curve):
        trainer.add_callback(callback)
    started = time.perf_counter()
    trainer.train()
    train_seconds = time.perf_counter() - started - curve.seconds
    trainer.save_model()

    def asked(label: str, generator: Callable[..., list[str]]) -> Finished:
        evaluation = evaluate(
            model,
            tokenizer,
            facts.tasks,
            max_new_tokens=config.max_new_tokens,
            likelihood=generator is generate,  # the test is a causal one
            progress=False,
            generator=generator,
        )
        record = run_from_json(
            {
                "system": label,
                "objective": system.objective,
                "seed": seed,
                "tasks": evaluation.summary(),
                "mixing_probability": mixing,
                "texts": len(new),
                "replayed": len(replayed),
                "threads": torch.get_num_threads(),
                "train_seconds": round(train_seconds, 1),
                "parameters": model.num_parameters(),
                "losses": _losses(trainer) if label == name else (),
                "curve": curve.points if label == name else (),
            }
        )
        rows = [{"system": label, "seed": seed, **dataclasses.asdict(row)} for row in evaluation.predictions]
        return Finished(record, rows)

    return [asked(label, generator) for label, generator in generators.items()]


def facts_read(config: CompareConfig, facts: FactData) -> FactData:
    """The facts as setting and systems read them: `train`, where there is pre-training `pretraining`, `other_order`.

    Raises:
        ValueError: the data has no tasks, or not what the setting reads.
    """
    if not facts.tasks:
        raise ValueError(f"data {config.data!r} has no tasks to evaluate, as bico compare needs; try bico train")
    if not any(SYSTEMS[name].other_order for name in config.systems):
        facts = dataclasses.replace(facts, other_order=())
    if config.setting == "scratch":
        return dataclasses.replace(facts, pretraining=())
    for part, file, what in (
        ("pretraining", "pretrain.jsonl", "texts about other entities to pre-train on"),
        ("one_order", "one_order.jsonl", "training texts of facts in one order only to fine-tune on"),
    ):
        if not getattr(facts, part):
            raise ValueError(
                f"data {config.data!r} has no {what} ({file} in a folder of your own); use setting='scratch'"
            )
    return dataclasses.replace(facts, train=facts.one_order)


def pretrain(config: CompareConfig, family: str, seed: int, callback: TrainerCallback) -> None:
    """Next-token prediction of the pre-training texts from the initial model of `seed`, saved for all its systems."""
    facts = facts_read(config, load_facts(config.data))
    model, tokenizer = initial_model(config, facts, family, seed)
    target = pretrained_folder(config, family, seed)
    trainer = _trainer(
        dataclasses.replace(config, steps=config.pretrain_steps, learning_rate=config.pretrain_learning_rate),
        "ntp",
        0.0,
        model,
        tokenizer,
        facts.pretraining,
        seed,
        target.with_name(f"{target.name}.partial"),
    )
    trainer.add_callback(callback)
    trainer.train()
    trainer.save_model()
    Path(cast(str, trainer.args.output_dir)).rename(target)


def run_folder(config: CompareConfig, name: str, seed: int) -> Path:
    """Where a run keeps its trained model; its results are beside it in `<folder>.json`."""
    return Path(config.output_dir) / "runs" / f"{name}-seed{seed}"


def pretrained_folder(config: CompareConfig, family: str, seed: int) -> Path:
    """Where the pre-trained model of a seed is, once it is finished."""
    return Path(config.output_dir) / "pretrained" / f"{family}-seed{seed}"


def starting_model(config: CompareConfig, facts: FactData, family: str, seed: int) -> tuple[Any, Any]:
    """The model that a system's training starts from, and its tokenizer."""
    if config.setting == "pretrained":
        return checkpoints.load(pretrained_folder(config, family, seed))
    return initial_model(config, facts, family, seed)


def initial_model(config: CompareConfig, facts: FactData, family: str, seed: int) -> tuple[Any, Any]:
    """The model before any training and its tokenizer; the same for every system of a family and seed.

    The tiny model's vocabulary comes from the training texts alone: a word that only a test prompt has is unknown.
    """
    set_seed(seed)
    if config.model != "tiny":
        return checkpoints.load(config.model)
    tokenizer = train_word_tokenizer([example.text for example in (*facts.train, *facts.pretraining)])
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.hidden_size * 4,
        "num_hidden_layers": cast(int, config.layers),
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": tokenizer.model_max_length,
        # transformers' 0.02 suits widths in the thousands: at 128 denoising learned later and reversed less.
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model: PreTrainedModel
    if family == "glm":
        model = GlmForCausalLM(GlmConfig(**shape, head_dim=config.hidden_size // HEADS))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape))
    return model, tokenizer


def _replayed(pretraining: Sequence[Example], share: float, new: int, seed: int) -> list[Example]:
    """Texts of the pre-training, drawn to be `share` of all texts where `new` others are read; at most all of them."""
    order = torch.randperm(len(pretraining), generator=Generator().manual_seed(stream_seed("replay", seed))).tolist()
    return [pretraining[place] for place in order[: round(new * share / (1 - share))]]


def entities(facts: FactData) -> list[str]:
    """The names that the questions are about, as far as the data says so."""
    questions = (question for task in facts.tasks.values() for question in task.examples)
    return sorted({question.entity for question in questions if question.entity is not None})


class _Curve(TrainerCallback):
    """Asks some questions of each task at even distances during training.

    Attributes:
        points: [{"step", "tasks": {task: share contained}}].
        seconds: spent asking.
    """

    def __init__(
        self, config: CompareConfig, tokenizer: Any, tasks: dict[str, Task], generator: Callable[..., list[str]]
    ) -> None:
        self.config, self.tokenizer, self.generator = config, tokenizer, generator
        self.points: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.tasks = {
            name: dataclasses.replace(task, examples=task.examples[:: -(-len(task.examples) // CURVE_QUESTIONS)])
            for name, task in tasks.items()
        }

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        points, steps = self.config.curve_points, cast(int, self.config.steps)
        step = state.global_step
        if step * points // steps == (step - 1) * points // steps:
            return
        started = time.perf_counter()
        evaluation = evaluate(
            kwargs["model"],
            self.tokenizer,
            self.tasks,
            max_new_tokens=self.config.max_new_tokens,
            progress=False,
            generator=self.generator,
        )
        scores = {task: round(values["contains"], 4) for task, values in evaluation.summary().items()}
        self.points.append({"step": step, "tasks": scores})
        self.seconds += time.perf_counter() - started


def _trainer(
    config: CompareConfig,
    objective: str,
    mixing_probability: float,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    seed: int,
    output: Path,
    entities_file: Path | None = None,
) -> BicoTrainer:
    args = BicoConfig(
        output_dir=str(output),
        objective=objective,
        mixing_probability=mixing_probability,
        mask_rate=config.mask_rate,
        infill_spans=config.infill_spans,
        permute_segments=config.permute_segments,
        entities_file=None if entities_file is None else str(entities_file),
        max_steps=cast(int, config.steps),
        per_device_train_batch_size=config.batch_size,
        train_sampling_strategy="group_by_length",
        learning_rate=cast(float, config.learning_rate),
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=0.98,
        bf16=config.bf16,
        use_cpu=not (torch.cuda.is_available() and has_kernels("cuda")),
        seed=seed,
        logging_steps=25,
        save_strategy="no",  # but for the trained model
        report_to="none",
        disable_tqdm=True,
    )
    rows = [{"prompt": example.prompt, "completion": example.completion} for example in examples]
    trainer = BicoTrainer(model, args, rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)  # the log goes into the results
    return trainer


def _losses(trainer: BicoTrainer) -> list[dict[str, Any]]:
    return [
        {
            name: value if math.isfinite(value) else None  # JSON has no NaN, and a diverged run is a result too
            for name, value in entry.items()
            if name == "step" or name.startswith("loss_")
        }
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
