"""Trials with a full disk, and with files that were damaged while the command did not run."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from commands import ended, log_of
from trials import Trial, Uninterrupted

PARTS = (
    0.1,
    0.4,
    0.7,
    0.95,
)  # of the space that the results of the uninterrupted run take; while it runs it needs more


class Damage(NamedTuple):
    """A file of a finished run, and what becomes of the command if the file is cut.

    Attributes:
        file: its path in the output folder.
        mended: whether the command goes on and writes the file again; otherwise it stops, and names the file or its
            folder. It also stops if the file cannot be read or replaced.
        deletable: whether the command goes on when the file has been deleted.
    """

    file: str
    mended: bool
    deletable: bool


DAMAGES = {
    "compare": [
        Damage("runs/ntp-seed0.json", mended=False, deletable=True),
        Damage("settings.json", mended=False, deletable=False),
        Damage("results.json", mended=True, deletable=True),
    ],
    "train": [
        Damage("model.safetensors", mended=True, deletable=False),
        Damage("checkpoint-40/trainer_state.json", mended=False, deletable=False),
    ],
    "fetch-model": [Damage("origin.json", mended=False, deletable=False)],
}


def disk_trials(whole: Uninterrupted, mounts: bool) -> Iterator[Callable[[Path], Trial]]:
    """Return trials on a disk that is too small, as functions of an output folder.

    Args:
        whole: the command.
        mounts: whether a small disk may be mounted. Otherwise a limit for the size of each file stands for it.
    """
    sizes = [file.stat().st_size for file in whole.out.rglob("*") if file.is_file()]
    for part in PARTS:
        if mounts:
            yield partial(_on_small_disk, whole, int(part * sum(sizes)))
        else:
            yield partial(_with_small_files, whole, int(part * max(sizes)))


def may_mount(folder: Path) -> bool:
    """Tell whether this process may mount a small disk."""
    try:
        with _small_disk(folder, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _small_disk(folder: Path, space: int) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    _mount(folder, f"size={space}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


def _on_small_disk(whole: Uninterrupted, space: int, out: Path) -> Trial:
    with _small_disk(out.parent, space):
        trial = _fails(whole, f"disk of {space:,} bytes", out)
        _mount(out.parent, "remount,size=1g")
        return whole.resumed(trial, out, partial=True)


def _with_small_files(whole: Uninterrupted, size: int, out: Path) -> Trial:
    trial = _fails(whole, f"files of at most {size:,} bytes", out, size)
    return whole.resumed(trial, out, partial=True)


def _fails(whole: Uninterrupted, fault: str, out: Path, largest_file: int | None = None) -> Trial:
    """Start a command that cannot end well: it must say so in a sentence."""
    trial = Trial(whole.command.name, faults=[fault], starts=1)
    process = whole.command.start(out, largest_file=largest_file)  # forked before a thread watches
    with whole.watching(trial, out, partial=True):
        trial.exits.append(ended(process))
    log = log_of(out).read_text(errors="replace")
    if trial.exits != [1] or f"bico {trial.command}: " not in log or "Traceback" in log:
        trial.wrong.append(f"does not say in a sentence that the disk is full: {log[-300:]}")
    return trial


def damage_trials(whole: Uninterrupted) -> Iterator[Callable[[Path], Trial]]:
    """Return trials with a damaged file of a finished run, as functions of an output folder."""
    for damage in DAMAGES[whole.command.name]:
        yield partial(_damaged, whole, damage, "cut")
        yield partial(_damaged, whole, damage, "unreadable")


def _damaged(whole: Uninterrupted, damage: Damage, how: str, out: Path) -> Trial:
    trial = Trial(whole.command.name, faults=[f"{damage.file} is {how}"], starts=1)
    shutil.copytree(whole.out, out)
    file = out / damage.file
    if how == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:  # a folder, because root may read every file
        file.unlink()
        file.mkdir()
    trial.exits.append(ended(whole.command.start(out, again=True)))
    log = log_of(out).read_text(errors="replace")
    if how == "cut" and damage.mended:
        return whole.resumed(trial, out)
    if trial.exits != [1] or str(out) not in log or "Traceback" in log:
        trial.wrong.append(f"does not say where the damage is: {log[-300:]}")
    if not damage.deletable:
        return trial
    if how == "cut":
        file.unlink()
    else:
        file.rmdir()
    return whole.resumed(trial, out)
