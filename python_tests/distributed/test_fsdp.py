"""FSDP2 by accelerate: two processes equal one, and their checkpoints continue on two processes and on one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdp_processes import SETTINGS
from launched import launched
from safetensors.torch import load_file
from tiny_training import config, logged, some_rows, tiny_llama, write_facts_and_model
from torch import Tensor

from bico_ext.training.trainer import BicoTrainer

CONFIG = Path(__file__).parents[2] / "configs" / "fsdp2_8_gpus.yaml"


def launch(processes: int, folder: Path, *arguments: Path) -> dict[str, Any]:
    """Run fsdp_processes.py under the shipped configuration of accelerate and return its results."""
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", str(processes))
    program = Path(__file__).with_name("fsdp_processes.py")
    result = launched("--main_process_port", "0", program, folder, *arguments, launcher=launcher)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("The trained model is in") <= 1, "both processes report"
    return json.loads((folder / f"results of {processes}.json").read_text())


def test_sharded_checkpoints_continue_on_another_number_of_processes(tmp_path: Path) -> None:
    write_facts_and_model(tmp_path, "cli-model")
    one = BicoTrainer(tiny_llama(), config(tmp_path / "one", **SETTINGS), some_rows(), some_rows(5))
    one.train()
    scores = one.evaluate()

    two = launch(2, tmp_path)
    checkpoint = tmp_path / "unbroken" / "checkpoint-3"
    by_one = launch(1, tmp_path, checkpoint)

    for run in (two["unbroken"], two["resumed"], by_one["resumed"]):
        assert run["losses"] == pytest.approx(logged(one), rel=1e-5)  # of the steps before the checkpoint, too
        assert run["evaluated"] == pytest.approx([scores["eval_loss"], scores["eval_bico_loss"]], rel=1e-5)
    assert {path.name for path in (checkpoint / "optimizer_0").iterdir()} == {
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    }, "each process writes its part"
    for name in ("unbroken", "resumed by two", "resumed by one"):
        check_weights(load_file(tmp_path / name / "model.safetensors"), one.model.state_dict())
    check_adapters(tmp_path / "adapters", load_file(tmp_path / "cli-model" / "model.safetensors"))


def check_weights(saved: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    assert saved.keys() == trained.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, trained[name], rtol=1e-4, atol=1e-5)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(saved[name], tiny_llama().state_dict()[name], atol=1e-3)


def check_adapters(folder: Path, base: dict[str, Tensor]) -> None:
    """The adapters are whole and trained: LoRA's B starts as zeros."""
    adapters = load_file(folder / "adapter_model.safetensors")
    assert len(adapters) == 7 * 2
    for name, weight in adapters.items():
        layer, matrix = re.fullmatch(r"base_model\.model\.(.+)\.(lora_[AB])\.weight", name).groups()
        outputs, inputs = base[f"{layer}.weight"].shape
        assert weight.shape == ((32, inputs) if matrix == "lora_A" else (outputs, 32)), name
        assert weight.any(), name
    assert (folder / "checkpoint-2" / "optimizer_0" / ".metadata").exists()
