"""What each process runs for test_fsdp.py: `fsdp_processes.py FOLDER [CHECKPOINT]`, started by accelerate launch."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from tiny_training import config, logged, some_rows, tiny_llama
from torch.distributed.tensor import DTensor

from bico_ext.cli.main import main
from bico_ext.training.trainer import BicoTrainer

SETTINGS: dict = {"objective": "bico", "save_strategy": "steps", "save_steps": 3}
create_state = AcceleratorState.__init__


def create_state_with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    """Do on CPUs what accelerate does only where there are GPUs; without it, it trains with DDP there."""
    create_state(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:  # else the state is only read
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


def train(folder: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    processes = torch.distributed.get_world_size()
    args = config(folder, per_device_train_batch_size=8 // processes, **SETTINGS)
    trainer = BicoTrainer(tiny_llama(), args, some_rows(), some_rows(5))
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    scores = trainer.evaluate()
    trainer.save_model()
    return {"losses": logged(trainer), "evaluated": [scores["eval_loss"], scores["eval_bico_loss"]]}


def train_adapters(folder: Path) -> dict[str, Any]:
    """The shipped recipe, by the command, on a model whose embeddings are tied."""
    recipe = Path(__file__).parents[2] / "configs" / "llama2_7b_bico.yaml"
    options = {"--config": recipe, "--model": folder / "cli-model", "--data": folder / "facts", "--max_steps": 2}
    options |= {"--output-dir": folder / "adapters", "--report_to": "none", "--save_strategy": "steps"}
    command = ["train", "--use_cpu", *(str(part) for option in options.items() for part in option)]
    assert main([*command, "--save_steps", "1"]) == 0
    return {}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    folder, *checkpoints = map(Path, sys.argv[1:])
    with patch.object(AcceleratorState, "__init__", create_state_with_fsdp):
        if checkpoints:
            results = {"resumed": train(folder / "resumed by one", checkpoints[0])}
        else:
            results = {"unbroken": train(folder / "unbroken")}
            results["resumed"] = train(folder / "resumed by two", folder / "unbroken" / "checkpoint-3")
            results["adapters"] = train_adapters(folder)
    if torch.distributed.get_rank() == 0:
        (folder / f"results of {torch.distributed.get_world_size()}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
