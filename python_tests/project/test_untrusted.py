"""Models and data are not trusted: nothing is unpickled, no code of a model is run, and nobody is called."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_training import write_facts_and_model
from transformers import AutoModelForCausalLM

from bico_ext.cli.main import main
from bico_ext.models.checkpoints import count_parameters, load


class Armed:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with facts and a model."""
    write_facts_and_model(tmp_path)
    return tmp_path


def test_pickled_weights_are_not_read(folder: Path) -> None:
    model = folder / "model"
    (model / "model.safetensors").unlink()
    torch.save({"weights": Armed(folder / "ran")}, model / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"has its weights in pytorch_model.bin, a pickle, which may run code when it is"):
        load(model)
    assert not (folder / "ran").exists()


def test_pickled_adapters_are_not_read(folder: Path) -> None:
    adapters = folder / "adapters"
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(adapters)
    (adapters / "adapter_model.safetensors").unlink()
    torch.save({"weights": Armed(folder / "ran")}, adapters / "adapter_model.bin")
    with pytest.raises(OSError, match=r"has its weights in adapter_model.bin, a pickle"):
        load(adapters)
    assert not (folder / "ran").exists()


def test_code_beside_a_model_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask whether to run it, and wait for an answer."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    model = folder / "model"
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "code.py").write_text(f"import pathlib; pathlib.Path({str(folder / 'ran')!r}).touch()")
    for read in (load, count_parameters):
        with pytest.raises(OSError, match=r"model .* cannot be loaded: .*custom code"):
            read(model)
    assert not (folder / "ran").exists()


def test_nobody_is_called_where_folders_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def refuse(*where: Any, **_: Any) -> None:
        called.append(where)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    named = ["--model", str(folder / "model"), "--data", str(folder / "facts")]
    steps = ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    assert main(["train", *named, *steps, "--output_dir", str(folder / "trained")]) == 0
    assert main(["evaluate", *named, "--output_dir", str(folder / "scores")]) == 0
    assert not called
