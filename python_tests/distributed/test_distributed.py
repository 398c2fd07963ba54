"""Two processes equal one: with DDP, FSDP2 and tensor parallelism, the same objectives, hidden tokens and losses."""

import json
from pathlib import Path

import pytest
import torch
from launched import launched
from safetensors.torch import load_file
from tiny_training import logged, some_rows, tiny_llama, train, write_facts_and_model
from torch import Tensor

from bico_ext.models.attach import attach

SETTINGS: dict = {"objective": "bico", "optim": "sgd", "per_device_train_batch_size": 8}


def run_two_processes(folder: Path) -> dict[str, list[float]]:
    """Run two_processes.py and return its results; one start serves all checks, because it takes most of the time."""
    tiny_llama().save_pretrained(folder / "model")
    write_facts_and_model(folder, "example-model")
    result = launched(Path(__file__).with_name("two_processes.py"), folder)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads((folder / "results.json").read_text())


def test_two_processes_equal_one(tmp_path: Path) -> None:
    two = run_two_processes(tmp_path)
    one = train(tmp_path / "one", **SETTINGS)
    assert two["ddp"] == pytest.approx(logged(one), rel=1e-5)
    assert two["packed"] == pytest.approx(logged(one), rel=1e-5)
    in_order = train(tmp_path / "in_order", train_sampling_strategy="sequential", **SETTINGS)
    assert two["streamed"] == pytest.approx(logged(in_order), rel=1e-5)
    assert two["fsdp2"] == pytest.approx(logged(one), rel=1e-5)
    check_that_the_sharded_model_is_saved_whole(tmp_path / "fsdp2", one.model.state_dict())
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("example-model", "example"))
    assert all(weight.shape == after[name].shape for name, weight in before.items())
    assert any(not torch.equal(weight, after[name]) for name, weight in before.items())
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])  # this model ties them
    assert sorted(path.name for path in (tmp_path / "ddp").iterdir()) == ["checkpoint-3", "checkpoint-6"]
    states = {path.name for path in (tmp_path / "ddp" / "checkpoint-6").glob("rng_state*")}
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}, "a checkpoint has its name before all parts are there"
    resumed = train(tmp_path / "ddp", resume=str(tmp_path / "ddp" / "checkpoint-3"), **SETTINGS)
    assert resumed.state.global_step == 6
    assert logged(resumed)[-3:] == pytest.approx(logged(one)[-3:], rel=1e-5), "a checkpoint of two, continued by one"
    assert two["tensor_parallel"] == pytest.approx(loss_and_size_of_a_gradient(), rel=1e-5)


def check_that_the_sharded_model_is_saved_whole(folder: Path, trained: dict[str, Tensor]) -> None:
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() <= trained.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, trained[name], rtol=1e-4, atol=1e-5)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(saved[name], tiny_llama().state_dict()[name], atol=1e-3)


def loss_and_size_of_a_gradient() -> list[float]:
    """What `tensor_parallel` of two_processes.py computes, in one process."""
    model = attach(tiny_llama())
    ids = torch.tensor([row["input_ids"][:4] for row in some_rows(6)])
    span_ids = torch.tensor([[0, 1, 1, 0]], dtype=torch.int32).repeat(6, 1)
    loss = model(input_ids=ids, span_ids=span_ids, labels=ids).loss
    loss.backward()
    return [loss.item(), model.model.layers[0].self_attn.q_proj.weight.grad.norm().item()]
