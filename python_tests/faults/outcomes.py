"""What a command leaves in its output folder: what must be whole at every moment, and what must be equal at the end."""

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from bico_ext.training.complete_checkpoints import UNFINISHED, missing_part

TIMES = {"train_seconds"}  # of a record: what two equal runs differ in


def broken(out: Path) -> list[str]:
    """Return what a reader would stumble over in an output folder at this moment."""
    found = []
    for file in [*out.glob("*.json"), *out.glob("*.jsonl"), *out.glob("runs/*.json")]:
        try:
            text = file.read_text(encoding="utf-8")
            for part in text.splitlines() if file.suffix == ".jsonl" else [text]:
                json.loads(part)
        except FileNotFoundError:
            pass  # it has just been removed
        except ValueError as error:
            found.append(f"{file.relative_to(out)} is broken: {error}")
    for folder in [out, *out.glob("runs/*"), *out.glob("pretrained/*")]:
        if folder.suffix == ".partial" or not (folder / "config.json").exists():
            continue
        try:
            with safe_open(folder / "model.safetensors", "pt"):
                pass
        except (OSError, RuntimeError, SafetensorError) as error:
            found.append(f"{folder.relative_to(out)} looks like a model, but its weights are not whole: {error}")
    for folder in [out, *out.glob("runs/*")]:
        if folder.with_name(f"{folder.name}.json").exists():
            continue  # a finished run of a comparison, which removes its checkpoints now
        numbered = {int(path.name.partition("-")[2]): path for path in folder.glob("checkpoint-*")}
        if numbered and (missing := missing_part(newest := numbered[max(numbered)])) and newest.exists():
            if folder.with_name(f"{folder.name}.json").exists():
                continue  # it has just ended
            found.append(f"{newest.relative_to(out)} is not complete: {missing}")
    return found


class Watcher:
    """Looks into an output folder all the time.

    Attributes:
        found: what was broken at some moment.
        versions: each content that results.json had.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.found: list[str] = []
        self.versions: list[dict[str, Any]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()

        def look() -> None:
            try:
                while not stop.is_set():
                    self.look()
                    time.sleep(0.01)
            except BaseException as error:
                self.found.append(f"nobody watched: {error!r}")
                raise

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.look()

    def look(self) -> None:
        self.found += [what for what in broken(self.out) if what not in self.found]
        try:
            content = json.loads((self.out / "results.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.versions and "results.json is gone" not in self.found:
                self.found.append("results.json is gone")
        except ValueError:
            pass  # found by broken()
        else:
            if without_times(content) not in self.versions[-1:]:
                self.versions.append(without_times(content))


def results(out: Path) -> dict[str, Any]:
    """Return everything that two equal runs have in common, by file."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if file.is_dir() or file.name.startswith("."):
            continue
        if file.suffix == ".safetensors":
            found[name] = load_file(file)
        elif file.suffix == ".json":
            found[name] = without_times(json.loads(file.read_text(encoding="utf-8")))
        elif file.suffix == ".jsonl":
            found[name] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        else:
            found[name] = None  # it must be there
    return found


def without_times(value: Any) -> Any:
    """Return a JSON value without its durations."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def differences(got: Any, expected: Any, where: str = "") -> list[str]:
    """Say in what two results differ: weights and other numbers by more than rounding, all else at all."""
    if isinstance(expected, dict) and isinstance(got, dict):
        keys = sorted(got.keys() ^ expected.keys())
        found = [f"{where}{key} is {'missing' if key in expected else 'superfluous'}" for key in keys]
        for key in expected.keys() & got.keys():
            found += differences(got[key], expected[key], f"{where}{key}: ")
        return sorted(found)
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        return [line for index, pair in enumerate(zip(got, expected, strict=True)) for line in
                differences(*pair, f"{where}{index}: ")]  # fmt: skip
    if isinstance(expected, torch.Tensor):
        same = got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
        return [] if same else [f"{where}other weights"]
    if isinstance(expected, float) and isinstance(got, float):
        same = math.isclose(got, expected, rel_tol=1e-3, abs_tol=1e-6)
    else:
        same = got == expected
    return [] if same else [f"{where}{got!r:.60} instead of {expected!r:.60}"]


def same_bits(got: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Tell whether all weights are equal bit for bit."""
    return all(
        torch.equal(weight, got[file][name])
        for file, value in expected.items()
        if file.endswith(".safetensors")
        for name, weight in value.items()
    )


def contents(out: Path) -> dict[str, str]:
    """Return a digest of each file, by its path."""
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


def last_written(out: Path) -> str:
    """Return the path of the file that was written last."""
    newest, name = 0, "nothing"
    for file in out.rglob("*"):
        try:
            written = file.stat().st_mtime_ns
        except FileNotFoundError:
            continue
        if written > newest and file.is_file():
            newest, name = written, str(file.relative_to(out))
    return name


def leftovers(out: Path) -> list[str]:
    """Return what only a killed process leaves: the remains of a checkpoint or of a model that was being written."""
    beside = [path for path in out.parent.glob(f".{out.name}.*") if path.is_dir()]
    return [str(path.relative_to(out.parent)) for path in [*out.rglob(UNFINISHED), *out.rglob("*.partial"), *beside]]
