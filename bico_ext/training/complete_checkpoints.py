"""Checkpoints of a training run that are either complete or absent, whatever happens while one is written.

The Trainer of transformers writes into `checkpoint-N` file by file. A process that is killed or finds the disk full
leaves a folder that looks like a checkpoint, and the Trainer resumes from one without optimizer state as if nothing
were missing. Here a checkpoint is written into the folder `_unfinished` and then renamed. The trained model is written
there, too: it is a model for those who look for one when its configuration, the last file, has been moved to its place.
"""

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from bico_ext.files import expand_user, flush
from bico_ext.training.resume_record import check_record, write_record

# In the output folder: the checkpoint that is being written, or was when its process died. What begins with an
# underscore is never pushed.
UNFINISHED = "_unfinished"
_REPLACED = "replaced"  # in that folder: the checkpoint whose name another one of the same step gets
_MODEL = "model"  # in that folder: the trained model that is being written
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")  # as transformers names them
_CONFIGURATIONS = ("config.json", "adapter_config.json")  # without one, a folder is no model
_TORCH_FILES = ("*.pt", "*.pth", "*model*.bin", "optimizer*.bin")


class SaveError(OSError):
    """Something could not be saved; the message names the last complete checkpoint."""


def last_complete(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest complete checkpoint of a run, with one warning for each newer one that is not complete.

    If a process was killed when it had taken the name of a checkpoint from an earlier one of the same step, the
    checkpoint gets its name here.

    Args:
        folder: the output folder of the run, which may be absent.

    Returns:
        The folder `checkpoint-N` with the largest N among the complete ones; None if there is none.

    Example:
        >>> last_complete("out") is None
        True
    """
    folder = Path(expand_user(folder))
    _finish_replacing(folder)
    numbered = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for _, path in sorted(numbered.items(), reverse=True):
        missing = missing_part(path)
        if missing is None:
            return path
        logging.getLogger(__name__).warning("%s is skipped, because it is not complete: %s", path, missing)
    return None


def _finish_replacing(folder: Path) -> None:
    """Make the second of two renames, if the process died after the first."""
    if (folder / UNFINISHED / _REPLACED).exists():
        for written in (folder / UNFINISHED).glob("checkpoint-*"):
            with suppress(OSError):  # the second rename was made, or another process makes it now
                os.rename(written, folder / written.name)


def unfinished_model(folder: str | os.PathLike[str]) -> bool:
    """Tell whether the process that saved the trained model into this folder has died before it was done.

    Example:
        >>> unfinished_model("out")
        False
    """
    return (Path(folder) / UNFINISHED / _MODEL).exists()


def missing_part(checkpoint: str | os.PathLike[str]) -> str | None:
    """Say what a checkpoint lacks for training to go on from it; None if nothing.

    The weights are not read: the header of a file of safetensors tells its length, and the directory of a file of
    torch.save is at its end. The files of the model's configuration and of the tokenizer are not looked for.

    Example:
        >>> missing_part("out/checkpoint-500")
        'trainer_state.json is missing or cut'
    """
    folder = Path(expand_user(checkpoint))
    if _read_object(folder / "trainer_state.json") is None:
        return "trainer_state.json is missing or cut"
    for index in sorted(folder.glob("*.index.json")):
        files = (_read_object(index) or {}).get("weight_map")
        if not isinstance(files, dict):
            return f"{index.name} is cut"
        if absent := sorted(name for name in set(files.values()) if not (folder / name).exists()):
            return f"{absent[0]} is missing"
    if not any(folder.rglob("*model[_.-]*")):
        return "there are no weights"
    if not any(folder.glob("global_step*")) and not (
        any(folder.glob("optimizer*")) and (folder / "scheduler.pt").exists()
    ):
        return "there is no state of the optimizer"
    if not any(folder.glob("rng_state*.pth")):
        return "there is no random state"
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, RuntimeError, SafetensorError):  # the second if it is removed at this moment
            return f"{file.name} is cut"
    for file in sorted(file for pattern in _TORCH_FILES for file in folder.glob(pattern)):
        if file.is_file() and not zipfile.is_zipfile(file):
            return f"{file.name} is cut"
    return None


def _read_object(file: Path) -> dict[str, Any] | None:
    """Return the object of a JSON file, or None if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _move_model(written: Path, folder: Path) -> None:
    """Move the files of a model into a folder, where they replace those of an earlier one.

    Until it is done, the folder is no model: its weights may be of both.
    """
    files = [file for file in written.rglob("*") if file.is_file()]
    for name in _CONFIGURATIONS:
        (folder / name).unlink(missing_ok=True)
    weights = {file.name for file in files if _WEIGHTS.fullmatch(file.name)}
    for file in folder.iterdir() if weights else ():
        if _WEIGHTS.fullmatch(file.name) and file.name not in weights:  # of the earlier model
            file.unlink()
    for file in sorted(files, key=lambda file: file.name in _CONFIGURATIONS):  # these come last
        place = folder / file.relative_to(written)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)


class CompleteCheckpoints(Trainer):
    """A Trainer whose checkpoints have their names only when they are complete, and that resumes only from such."""

    _unfinished: Path | None = None  # where a checkpoint is being written
    _trained_with: dict[str, Any] | None = None  # what a checkpoint records

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`, but True means the newest complete checkpoint.

        Raises:
            ValueError: the checkpoint is not complete, there is none, or it was trained with something else.
        """
        folder = Path(cast(str, self.args.output_dir))
        if resume_from_checkpoint is True:
            checkpoint = last_complete(folder)
            if checkpoint is None:
                raise ValueError(f"output_dir {folder} has no complete checkpoint to resume from")
            resume_from_checkpoint = str(checkpoint)
        elif resume_from_checkpoint and (missing := missing_part(resume_from_checkpoint)):
            raise ValueError(
                f"resume_from_checkpoint {resume_from_checkpoint} is not a complete checkpoint: {missing}; with True, "
                f"training continues from the newest complete one in {folder}"
            )
        if resume_from_checkpoint:
            resume_from_checkpoint = expand_user(resume_from_checkpoint)
        if resume_from_checkpoint and self._trained_with is not None:
            check_record(Path(resume_from_checkpoint), self._trained_with)
        if self.args.should_save:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`; an error also names the last complete checkpoint.

        Raises:
            SaveError: the model cannot be written.
        """
        if _internal_call:  # part of a checkpoint or of a push
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(cast(str, self.args.output_dir))
        with self._naming_last_checkpoint(folder, output_dir or folder):
            super().save_model(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As `Trainer._save`, but a model that is no part of a checkpoint gets its place when all of it is written."""
        folder = Path(output_dir or cast(str, self.args.output_dir))
        if self._unfinished is not None:
            self._write(folder, state_dict)
            return
        written = folder / UNFINISHED / _MODEL
        try:
            self._write(written, state_dict)
            if self.args.should_save:
                flush(written)
        except Exception:
            if self.args.should_save:
                shutil.rmtree(written.parent, ignore_errors=True)
            raise
        if self.args.should_save:
            _move_model(written, folder)
            shutil.rmtree(written.parent, ignore_errors=True)

    def _write(self, folder: Path, state_dict: Any) -> None:
        """Write the model and its tokenizer into a folder."""
        super()._save(str(folder), state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As `Trainer._save_checkpoint`, or raise a SaveError."""
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        written = folder / UNFINISHED / checkpoint.name
        with self._naming_last_checkpoint(folder, checkpoint):
            self._unfinished = written.parent
            try:
                super()._save_checkpoint(model, trial)
            except Exception:
                if self.args.should_save:
                    shutil.rmtree(self._unfinished, ignore_errors=True)
                raise
            finally:
                self._unfinished = None
        self.accelerator.wait_for_everyone()  # until all processes have written their parts
        with self._naming_last_checkpoint(folder, checkpoint):
            self._rename(written, checkpoint)
        self.accelerator.wait_for_everyone()  # no process writes the next one before the folder is gone
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            rotate_checkpoints(
                str(folder), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )

    def _rename(self, written: Path, checkpoint: Path) -> None:
        """Give a checkpoint its name."""
        # The Trainer has looked for the best one beside the unfinished one.
        best = checkpoint.with_name(f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and (best == checkpoint or best.exists()):
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(str(written / "trainer_state.json"))
            if self._trained_with is not None:
                write_record(written, self._trained_with)
            flush(written)
            if checkpoint.exists():  # of a run that went on from an earlier one, or made by transformers for SIGTERM
                os.replace(checkpoint, written.with_name(_REPLACED))
            os.replace(written, checkpoint)
            shutil.rmtree(written.parent, ignore_errors=True)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._unfinished is None else str(self._unfinished)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._unfinished is None:  # else it is pushed when it is complete
            super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def _naming_last_checkpoint(self, folder: Path, target: str | os.PathLike[str]) -> Iterator[None]:
        """Say where the last complete checkpoint is if something cannot be saved."""
        try:
            yield
        except Exception as error:  # torch and safetensors report a full disk by errors of their own
            last = last_complete(folder)
            remedy = (
                "There is no complete checkpoint yet."
                if last is None
                else f"The last complete checkpoint is {last}; when the cause is removed, continue from it with "
                "--resume, or in Python with trainer.train(resume_from_checkpoint=True)."
            )
            raise SaveError(f"{target} cannot be saved: {error}. {remedy}") from error
