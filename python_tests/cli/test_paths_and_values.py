"""Paths with ~, values that YAML reads in its own way, numbers out of range, and terminals that cannot show all."""

import dataclasses
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_training import write_facts_and_model
from transformers import TrainingArguments

from bico_ext.cli.arguments import parse
from bico_ext.cli.evaluate import EvaluateConfig
from bico_ext.cli.infill import InfillConfig
from bico_ext.cli.main import main
from bico_ext.cli.probe import ProbeConfig
from bico_ext.cli.train import TrainConfig
from bico_ext.comparison.config import CompareConfig
from bico_ext.facts.loader import load_facts
from bico_ext.models import checkpoints
from bico_ext.training.config import BicoConfig

COMMANDS: dict[str, list[Any]] = {
    "train": [TrainConfig, BicoConfig],
    "evaluate": [EvaluateConfig],
    "infill": [InfillConfig],
    "probe": [ProbeConfig],
    "compare": [CompareConfig],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another one to work in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.mark.parametrize("by_yaml", [False, True], ids=["flags", "yaml"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_begins_at_home(command: str, by_yaml: bool, home: Path) -> None:
    own = {option.name for config in COMMANDS[command] for option in dataclasses.fields(config)}
    named = {"output_dir", "model", "data", "input", "output", "entities_file", "resume_from_checkpoint"}
    used = sorted(named & own)
    (home / "entities_file").touch()  # which must be there
    if by_yaml:
        (home / "c.yaml").write_text("".join(f"{name}: ~/{name}\n" for name in used))
        arguments = ["--config", "~/c.yaml"]
    else:
        arguments = [part for name in used for part in (f"--{name}", f"~/{name}")]
    parsed = {
        name: value for config in parse(command, COMMANDS[command], arguments) for name, value in vars(config).items()
    }
    assert {name: parsed[name] for name in used} == {name: str(home / name) for name in used}


def test_evaluate_reads_and_writes_at_home(home: Path) -> None:
    """It made a folder of the name ~ and missed the model; the results say where both were."""
    write_facts_and_model(home)
    ask = ["evaluate", "--model", "~/model", "--data", "~/facts", "--output-dir", "~/out", "--max-new-tokens", "1"]
    assert main(ask) == 0
    assert f'"output_dir": "{home / "out"}"' in (home / "out" / "results.json").read_text()
    assert main(["report", "~/out", "--output-dir", "~/report"]) == 0
    assert (home / "report" / "table.md").exists()
    assert not any((home.parent / "work").iterdir())


def test_python_doors_begin_at_home(home: Path) -> None:
    write_facts_and_model(home)
    assert load_facts("~/facts").train
    assert checkpoints.count_parameters("~/model") == checkpoints.load("~/model")[0].num_parameters()
    config = CompareConfig("~/out", data="~/facts", model="~/model")
    assert (config.output_dir, config.data, config.model) == (f"{home}/out", f"{home}/facts", f"{home}/model")
    assert CompareConfig("out", data="./synthetic").data == "./synthetic", "a folder of that name"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("save_strategy: no", {"save_strategy": "no"}),
        ("eval_strategy: no", {"eval_strategy": "no"}),
        ("bf16: no\npacking: on\nresume: yes", {"bf16": False, "packing": True}),
        ("packing: off", {"packing": False}),
        ("learning_rate: 1e-4", {"learning_rate": 1e-4}),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-5}",
            {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
        ),
        ("seed: 7\nentities_file: ~", {"seed": 7, "entities_file": None}),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_yaml_means_what_it_says(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    """PyYAML takes `no` for False, also where it is a choice, and 1e-4 for a string."""
    path = tmp_path / "c.yaml"
    path.write_text(f"data: d\nmodel: m\noutput_dir: {tmp_path}/out\nuse_cpu: true\n{text}\n")
    _, args = parse("train", COMMANDS["train"], ["--config", str(path)])
    assert {name: getattr(args, name) for name in expected} == expected
    assert isinstance(args, TrainingArguments)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("learning_rate", "nan", "0 or more, and finite, got nan"),
        ("weight_decay", "nan", "0 or more, and finite, got nan"),
        ("max_steps", "-3", "at least 1, got -3; leave it out to train whole epochs"),
        ("num_train_epochs", "0", "more than 0, and finite, got 0.0"),
        ("per_device_train_batch_size", "0", "at least 1, got 0"),
        ("lora_dropout", "nan", r"in \[0, 1\), got nan"),
    ],
)
def test_a_number_out_of_range_writes_nothing(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["train", "--data", "invented", "--model", "m/m", "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    assert main([*command, "--lora_r", "2", f"--{option}", value]) == 1
    assert capsys.readouterr().err == f"bico train: {option} must be {message}\n".replace("\\", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", ["", "in/it"])
def test_training_into_a_file_says_so(inside: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_facts_and_model(tmp_path)
    (tmp_path / "file").touch()
    command = ["train", "--data", str(tmp_path / "facts"), "--model", str(tmp_path / "model"), "--use_cpu"]
    assert main([*command, "--output_dir", str(tmp_path / "file" / inside)]) == 1
    assert "cannot be made" in capsys.readouterr().err


def test_a_terminal_without_utf_8_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arrow in a table was an error after all the work was done."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr("bico_ext.cli.info.run", lambda arguments: print("name \u2192 description"))
    assert main(["info"]) == 0
    assert shown.getvalue() == b"name \\u2192 description\n"


def test_output_that_nobody_reads_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """As in `bico info | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert main(["info"]) == 141
        monkeypatch.undo()
    assert capfd.readouterr().err == "bico info: its output is no longer read\n"
