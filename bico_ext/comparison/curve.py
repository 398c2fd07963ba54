"""The learning curve of a run: scores of some questions during training.

Its points stand in the trainer's log, which is part of every checkpoint.
"""

import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Generator
from transformers import TrainerCallback

from bico_ext.comparison.config import CompareConfig
from bico_ext.facts.types import Task
from bico_ext.seeding import stream_seed


class Curve(TrainerCallback):
    """Evaluates the model on some questions of each task, at equal intervals during training.

    Each point is an entry {"step", "curve": {task: share of answers that contain the target}} of the log.

    Args:
        config: the settings of the comparison, with `steps`.
        scores: a function from a model and tasks to these shares.
        tasks: the tasks; `config.curve_questions` questions of each are drawn, the same in every run.

    Attributes:
        seconds: the time that the evaluations of this process took.
    """

    def __init__(
        self,
        config: CompareConfig,
        scores: Callable[[Any, dict[str, Task]], dict[str, float]],
        tasks: dict[str, Task],
    ) -> None:
        self.config, self.scores = config, scores
        self.seconds = 0.0
        self.tasks = {name: _sample(task, cast(int, config.curve_questions)) for name, task in tasks.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        points, steps = cast(int, self.config.curve_points), cast(int, self.config.steps)
        step = state.global_step
        if step * points // steps == (step - 1) * points // steps:
            return
        started = time.perf_counter()
        state.log_history.append({"step": step, "curve": self.scores(kwargs["model"], self.tasks)})
        self.seconds += time.perf_counter() - started


def _sample(task: Task, count: int) -> Task:
    """Draw questions of a task, and keep their order.

    Evenly spaced ones would all have one template in data that ask about each entity in the same ten templates.
    """
    generator = Generator().manual_seed(stream_seed("curve", task.name))
    drawn = torch.randperm(len(task.examples), generator=generator)[:count].sort().values.tolist()
    return Task(task.name, task.answer, tuple(task.examples[index] for index in drawn), task.counterpart)
