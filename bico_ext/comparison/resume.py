"""A killed training goes on from its last checkpoint, and a finished one leaves none behind."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback

from bico_ext.comparison.curve import Curve
from bico_ext.training.complete_checkpoints import UNFINISHED, last_complete
from bico_ext.training.trainer import BicoTrainer


class Checkpoints(TrainerCallback):
    """Asks for a checkpoint when the last one is some minutes old.

    Checkpoints coincide with log entries, whose losses are means since the last entry: a resumed run logs the losses of
    the uninterrupted one. There is none after the last step, whose results follow.

    Args:
        minutes: the least age of the last checkpoint, or of the start, in minutes.
        curve: the callback whose evaluations do not count as training; default: there is none.
    """

    def __init__(self, minutes: float, curve: Curve | None = None) -> None:
        self.minutes, self.curve = minutes, curve
        self.started = self.saved = time.perf_counter()
        self.before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.saved = time.perf_counter()
        self.before = next((entry["seconds"] for entry in reversed(state.log_history) if "seconds" in entry), 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = time.perf_counter() - self.saved >= 60 * self.minutes
        if due and state.global_step % args.logging_steps == 0 and state.global_step < state.max_steps:
            self.saved = time.perf_counter()
            state.log_history.append({"step": state.global_step, "seconds": self.train_seconds()})
            control.should_save = True

    def train_seconds(self) -> float:
        """Return the duration of the training so far, in all processes that took part in it, without evaluations."""
        evaluations = 0.0 if self.curve is None else self.curve.seconds
        return self.before + time.perf_counter() - self.started - evaluations


def train(trainer: BicoTrainer) -> None:
    """Train from the last complete checkpoint in the trainer's folder, or from the start if there is none."""
    checkpoint = last_complete(cast(str, trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def steps_done(folder: Path) -> int:
    """Return the number of optimizer steps that a training in this folder need not repeat."""
    checkpoint = last_complete(folder)
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished training; of its folder stays the model, if it was saved."""
    for superfluous in (*folder.glob("checkpoint-*"), folder / UNFINISHED):
        shutil.rmtree(superfluous, ignore_errors=True)
    with suppress(OSError):  # it holds the model, or is gone already
        folder.rmdir()
