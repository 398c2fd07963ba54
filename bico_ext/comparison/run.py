"""One run of a comparison: trains a model with one system from one seed and evaluates it on the tasks."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.curve import Curve
from bico_ext.comparison.initial_models import initial_model, starting_model
from bico_ext.comparison.resume import Checkpoints, train
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.comparison.trainer import make_trainer, trains_on_gpu
from bico_ext.comparison.training_data import entities, replayed_texts, select_facts, with_steps
from bico_ext.evaluation.evaluate import Evaluation, evaluate
from bico_ext.evaluation.fluency import fluency
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import Task
from bico_ext.files import write_text
from bico_ext.generation.blanks import generate_blank
from bico_ext.generation.greedy import generate
from bico_ext.generation.inference import BATCH_SIZE
from bico_ext.models.checkpoints import content_digest
from bico_ext.reports.records import BEFORE, Fluency, Run, tasks_from_json
from bico_ext.training.trainer import BicoTrainer

# Questions at once on a GPU, where a step of generation takes as long for one as for many.
GPU_BATCH_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Finished:
    """The record of a run, and its predictions in the form of `predictions.jsonl`."""

    run: Run
    predictions: list[dict[str, Any]]


def run(config: CompareConfig, name: str, seed: int, callbacks: Sequence[TrainerCallback] = ()) -> list[Finished]:
    """Train the starting model of a seed with a system and evaluate it; save it if the settings say so.

    If the run's folder holds a checkpoint of a run with the same settings, which was killed, that run goes on and has
    the results of an uninterrupted one.

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
    config = with_steps(config, facts)
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

    def scores(model: Any, tasks: dict[str, Task]) -> dict[str, float]:
        summary = _evaluate(config, model, tokenizer, tasks, generators[name], likelihood=False).summary()
        return {task: round(values["contains"], 4) for task, values in summary.items()}

    curve = Curve(config, scores, facts.tasks)
    checkpoints = Checkpoints(config.checkpoint_minutes, curve)
    for callback in (*callbacks, curve, checkpoints):
        trainer.add_callback(callback)
    train(trainer)
    train_seconds = checkpoints.train_seconds()
    if config.save_models:
        trainer.save_model()

    def evaluated(label: str, generator: Callable[..., list[str]]) -> Finished:
        likelihood = generator is generate  # the log-probability test predicts causally
        evaluation = _evaluate(config, trainer.model, tokenizer, facts.tasks, generator, likelihood)
        record = Run(
            label,
            tasks_from_json(evaluation.summary()),
            objective=system.objective,
            seed=seed,
            mixing_probability=mixing,
            texts=len(new),
            replayed=len(replayed),
            threads=torch.get_num_threads(),
            device=_device_name(trainer.args.device),
            train_seconds=round(train_seconds, 1),
            parameters=cast(Any, trainer.model).num_parameters(),
            model_digest=None if config.model == "tiny" else content_digest(config.model),
            losses=tuple(_losses(trainer)) if label == name else (),
            curve=tuple(_curve(trainer)) if label == name else (),
            fluency=_fluency(config, trainer.model, tokenizer) if config.model != "tiny" and likelihood else None,
        )
        predictions = [{"system": label, "seed": seed, **prediction.to_json()} for prediction in evaluation.predictions]
        return Finished(record, predictions)

    return [evaluated(label, generator) for label, generator in generators.items()]


def before_fine_tuning(config: CompareConfig) -> Finished:
    """Evaluate the given model of a comparison as it is, before any system trains it."""
    facts = select_facts(config, load_facts(config.data))
    model, tokenizer = initial_model(config, facts, "llama", config.seeds[0])
    model.to("cuda" if trains_on_gpu() else "cpu")
    evaluation = _evaluate(config, model, tokenizer, facts.tasks, generate, likelihood=True)
    record = Run(
        BEFORE,
        tasks_from_json(evaluation.summary()),
        device=_device_name(model.device),
        parameters=model.num_parameters(),
        model_digest=content_digest(config.model),
        fluency=_fluency(config, model, tokenizer),
    )
    return Finished(record, [{"system": BEFORE, **entry.to_json()} for entry in evaluation.predictions])


def _fluency(config: CompareConfig, model: Any, tokenizer: Any) -> Fluency:
    with _precision(config, model):
        return Fluency(**fluency(model, tokenizer))


def run_folder(config: CompareConfig, name: str, seed: int) -> Path:
    """Return the folder of a run's trained model; its results stand beside it in `<folder>.json`."""
    return Path(config.output_dir) / "runs" / f"{name}-seed{seed}"


def _evaluate(
    config: CompareConfig,
    model: Any,
    tokenizer: Any,
    tasks: dict[str, Task],
    generator: Callable[..., list[str]],
    likelihood: bool,
) -> Evaluation:
    with _precision(config, model):
        return evaluate(
            model,
            tokenizer,
            tasks,
            max_new_tokens=config.max_new_tokens,
            batch_size=GPU_BATCH_SIZE if model.device.type == "cuda" else BATCH_SIZE,
            likelihood=likelihood,
            progress=False,
            generator=generator,
        )


def _precision(config: CompareConfig, model: Any) -> torch.autocast:
    """Return the context in which a model is evaluated: bfloat16 autocast if the settings say so."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=bool(config.eval_bf16))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _curve(trainer: BicoTrainer) -> list[dict[str, Any]]:
    """Return the points of the learning curve from the log."""
    return [{"step": entry["step"], "tasks": entry["curve"]} for entry in trainer.state.log_history if "curve" in entry]


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
