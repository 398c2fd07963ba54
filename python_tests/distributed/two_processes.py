"""What each of two processes runs for test_distributed.py: `two_processes.py FOLDER`, started by torchrun."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny_training import config, logged, some_rows, tiny_llama, train
from torch.distributed.tensor import DTensor
from torch.utils.data import IterableDataset
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig

from bico_ext.models.attach import attach
from bico_ext.training.trainer import BicoTrainer


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        yield from some_rows()


def ddp(folder: Path) -> list[float]:
    trainer = train(
        folder / "ddp",
        objective="bico",
        optim="sgd",
        per_device_train_batch_size=4,
        save_strategy="steps",
        save_steps=3,
    )
    return logged(trainer)


def packed(folder: Path) -> list[float]:
    return logged(train(folder / "packed", objective="bico", optim="sgd", per_device_train_batch_size=4, packing=True))


def streamed(folder: Path) -> list[float]:
    args = config(folder / "streamed", objective="bico", optim="sgd", per_device_train_batch_size=4)
    trainer = BicoTrainer(tiny_llama(), args, Stream())
    trainer.train()
    return logged(trainer)


def fsdp2(folder: Path) -> list[float]:
    """Parameters are sharded when the model is loaded."""
    model = load(folder, fsdp_size=2)
    args = config(folder / "fsdp2", objective="bico", optim="sgd", per_device_train_batch_size=4)
    trainer = BicoTrainer(model, args, some_rows())
    trainer.train()
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    trainer.save_model()
    return logged(trainer)


def example(folder: Path) -> list[float]:
    """The sharded training in examples/."""
    script = Path(__file__).parents[2] / "examples" / "finetune_sharded.py"
    options = {"--model": folder / "example-model", "--data": folder / "facts", "--steps": 2}
    options["--output-dir"] = folder / "example"
    with patch.object(sys, "argv", [str(script), *(str(part) for option in options.items() for part in option)]):
        runpy.run_path(str(script), run_name="__main__")
    return []


def tensor_parallel(folder: Path) -> list[float]:
    """Each process has half of the heads. One loss, and the size of one gradient."""
    model = attach(load(folder, tp_size=2, tp_plan="auto"))
    q = model.model.layers[0].self_attn.q_proj.weight
    assert isinstance(q, DTensor)
    assert q.to_local().shape[0] == q.shape[0] // 2
    ids = torch.tensor([row["input_ids"][:4] for row in some_rows(6)])
    span_ids = torch.tensor([[0, 1, 1, 0]], dtype=torch.int32).repeat(6, 1)
    loss = model(input_ids=ids, span_ids=span_ids, labels=ids).loss
    loss.backward()
    return [loss.item(), q.grad.full_tensor().norm().item()]


def load(folder: Path, **parallel: object) -> LlamaForCausalLM:
    settings = DistributedConfig(**parallel)
    return LlamaForCausalLM.from_pretrained(folder / "model", distributed_config=settings, dtype=torch.float32)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    assert torch.distributed.get_world_size() == 2
    folder = Path(sys.argv[1])
    results = {run.__name__: run(folder) for run in (ddp, packed, streamed, fsdp2, example, tensor_parallel)}
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
