"""The parts of a data set that a comparison uses, and whether the data set provides them."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Generator

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.evaluation.leakage import leakage
from bico_ext.facts.types import Example, FactData
from bico_ext.seeding import stream_seed


def select_facts(config: CompareConfig, facts: FactData) -> FactData:
    """Return the parts of a data set that the setting and the systems use.

    `train` holds the texts that every system trains on. `pretraining` is empty from scratch, and `other_order` is empty
    unless a system needs it.

    Raises:
        ValueError: the data set has no tasks, or lacks texts that the setting needs.
    """
    if not facts.tasks:
        raise ValueError(f"data {config.data!r} has no tasks to evaluate, as bico compare needs; try bico train")
    if not any(SYSTEMS[name].other_order for name in config.systems):
        facts = dataclasses.replace(facts, other_order=())
    if config.setting == "scratch":
        facts = dataclasses.replace(facts, pretraining=())
    elif not facts.pretraining:
        raise ValueError(
            f"data {config.data!r} has no texts about other entities to pre-train on (pretrain.jsonl in a folder of "
            "your own); use setting='scratch'"
        )
    if config.facts == "all":
        return facts
    if not facts.one_order:
        raise ValueError(
            f"data {config.data!r} has no training texts of facts in one order only (one_order.jsonl in a folder of "
            "your own); use facts='all'"
        )
    return dataclasses.replace(facts, train=facts.one_order)


def with_steps(config: CompareConfig, facts: FactData) -> CompareConfig:
    """Return the settings with `steps` in place of `epochs`.

    One epoch has as many steps as `facts.train` has batches, for every system: one that reads more texts
    (`both-orders`, replay) makes no more steps than the others.
    """
    if config.epochs is None:
        return config
    return dataclasses.replace(config, steps=-(-len(facts.train) // config.batch_size) * config.epochs, epochs=None)


def check_facts(config: CompareConfig, facts: FactData) -> None:
    """Raise an error if the data set lacks what a system needs, or if a training text gives an answer away.

    Raises:
        ValueError: see above; the message names the systems, or the first such text.
    """
    systems = [name for name in config.systems if SYSTEMS[name].other_order]
    if systems and not facts.other_order:
        raise ValueError(
            f"data {config.data!r} does not have its facts in the other order, which {', '.join(systems)} needs "
            "(other_order.jsonl in a folder of your own); leave it out of systems"
        )
    systems = [name for name in config.systems if SYSTEMS[name].entities]
    if systems and not entities(facts):
        raise ValueError(
            f"data {config.data!r} does not name the entities of its questions, which {', '.join(systems)} needs (the "
            "key 'entity' in questions of your own); leave it out of systems"
        )
    leaks = leakage(facts)
    if leaks:
        task, question, text = leaks[0]
        raise ValueError(
            f"data {config.data!r} gives {len(leaks)} answers away in its training texts; the first is the answer of "
            f"{task} to {question.prompt!r:.80}, in {text!r:.120}; leave such texts out"
        )


def entities(facts: FactData) -> list[str]:
    """Return the sorted names that the questions are about, as far as the data set states them."""
    questions = (question for task in facts.tasks.values() for question in task.examples)
    return sorted({question.entity for question in questions if question.entity is not None})


def replayed_texts(pretraining: Sequence[Example], share: float, new: int, seed: int) -> list[Example]:
    """Draw the pre-training texts that fine-tuning reads again.

    Args:
        pretraining: the texts to draw from, without repetition.
        share: the share of the drawn texts among all fine-tuning texts, in [0, 1).
        new: the number of the other fine-tuning texts.
        seed: the seed of the run.

    Returns:
        The drawn texts; all of `pretraining` if the share would take more.
    """
    order = torch.randperm(len(pretraining), generator=Generator().manual_seed(stream_seed("replay", seed))).tolist()
    return [pretraining[index] for index in order[: round(new * share / (1 - share))]]
