"""One run of a comparison: trains a model with one system from one seed and evaluates it on the tasks."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.initial_models import initial_model, starting_model
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.comparison.trainer import make_trainer
from bico_ext.comparison.training_data import entities, replayed_texts, select_facts
from bico_ext.evaluation.evaluate import evaluate
from bico_ext.evaluation.fluency import fluency
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import Task
from bico_ext.files import write_text
from bico_ext.generation.blanks import generate_blank
from bico_ext.generation.greedy import generate
from bico_ext.reports.records import BEFORE, Fluency, Run, tasks_from_json
from bico_ext.training.trainer import BicoTrainer

CURVE_QUESTIONS = 60  # questions of each task, evenly spaced, per point of a learning curve: they take 1 to 2 seconds


@dataclasses.dataclass(frozen=True)
class Finished:
    """The record of a run, and its predictions in the form of `predictions.jsonl`."""

    run: Run
    predictions: list[dict[str, Any]]


def run(config: CompareConfig, name: str, seed: int, callbacks: Sequence[TrainerCallback] = ()) -> list[Finished]:
    """Train the starting model of a seed with a system, save it and evaluate it.

    Args:
        config: the settings of the comparison.
        name: the system, a key of `SYSTEMS`.
        seed: the seed of the weights, the order of the data, the masks, the replay and the choice of objective.
        callbacks: further callbacks for the trainer.

    Returns:
        The finished run. For a system with blank generation there is a second entry: the same model, evaluated by plain
        causal generation.
    """
    facts, system = select_facts(config, load_facts(config.data)), SYSTEMS[name]
    model, tokenizer = starting_model(config, facts, system.family, seed)
    new = [*facts.train, *(facts.other_order if system.other_order else ())]
    replayed = replayed_texts(facts.pretraining, cast(float, config.replay), len(new), seed)
    mixing = system.mixing_probability
    if config.mixing_probability is not None and mixing < 1:
        mixing = config.mixing_probability
    output = run_folder(config, name, seed)
    entities_file = None
    if system.entities:
        entities_file = output.with_name("entities.txt")
        write_text(entities_file, "".join(f"{entity}\n" for entity in entities(facts)))
    texts = [*new, *replayed]
    trainer = make_trainer(config, system.objective, mixing, model, tokenizer, texts, seed, output, entities_file)
    # The blank is [MASK], which the objective has trained here. A model trained from scratch never sees [gMASK].
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

    def evaluated(label: str, generator: Callable[..., list[str]]) -> Finished:
        evaluation = evaluate(
            model,
            tokenizer,
            facts.tasks,
            max_new_tokens=config.max_new_tokens,
            likelihood=generator is generate,  # the log-probability test predicts causally
            progress=False,
            generator=generator,
        )
        record = Run(
            label,
            tasks_from_json(evaluation.summary()),
            objective=system.objective,
            seed=seed,
            mixing_probability=mixing,
            texts=len(new),
            replayed=len(replayed),
            threads=torch.get_num_threads(),
            train_seconds=round(train_seconds, 1),
            parameters=model.num_parameters(),
            losses=tuple(_losses(trainer)) if label == name else (),
            curve=tuple(curve.points) if label == name else (),
            fluency=_fluency(model, tokenizer) if config.model != "tiny" and generator is generate else None,
        )
        predictions = [
            {"system": label, "seed": seed, **dataclasses.asdict(prediction)} for prediction in evaluation.predictions
        ]
        return Finished(record, predictions)

    return [evaluated(label, generator) for label, generator in generators.items()]


def before_fine_tuning(config: CompareConfig) -> Finished:
    """Evaluate the given model of a comparison as it is, before any system trains it."""
    facts = select_facts(config, load_facts(config.data))
    model, tokenizer = initial_model(config, facts, "llama", config.seeds[0])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    evaluation = evaluate(
        model, tokenizer, facts.tasks, max_new_tokens=config.max_new_tokens, likelihood=True, progress=False
    )
    record = Run(
        BEFORE,
        tasks_from_json(evaluation.summary()),
        parameters=model.num_parameters(),
        fluency=_fluency(model, tokenizer),
    )
    return Finished(record, [{"system": BEFORE, **dataclasses.asdict(entry)} for entry in evaluation.predictions])


def _fluency(model: Any, tokenizer: Any) -> Fluency:
    return Fluency(**fluency(model, tokenizer))


def run_folder(config: CompareConfig, name: str, seed: int) -> Path:
    """Return the folder of a run's trained model; its results stand beside it in `<folder>.json`."""
    return Path(config.output_dir) / "runs" / f"{name}-seed{seed}"


class _Curve(TrainerCallback):
    """Evaluates the model on some questions of each task, at equal intervals during training.

    Attributes:
        points: {"step", "tasks": {task: mean of `contains`}} for each evaluation.
        seconds: the time that all evaluations took.
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


def _losses(trainer: BicoTrainer) -> list[dict[str, Any]]:
    """Return the logged losses of each kind of step; None for a loss that is not finite."""
    return [
        {
            name: value if math.isfinite(value) else None  # JSON has no NaN, and a diverged run is a result, too
            for name, value in entry.items()
            if name == "step" or name.startswith("loss_")
        }
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
