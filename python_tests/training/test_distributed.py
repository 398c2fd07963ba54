"""A run on two processes equals the run on one: the same objectives, hidden tokens and losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import logged, train

PROGRAM = """
import json, sys
sys.path.insert(0, {tests!r})
from tiny_training import logged, train
trainer = train({folder!r}, objective="bico", optim="sgd", per_device_train_batch_size=4, packing={packing})
if trainer.is_world_process_zero():
    print("LOSSES", json.dumps(logged(trainer)), trainer.args.world_size)
"""


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_two_processes_equal_one(tmp_path, packing):
    program = tmp_path / "program.py"
    program.write_text(
        PROGRAM.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "two"), packing=packing)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("LOSSES"))
    losses, world_size = line.removeprefix("LOSSES ").rsplit(" ", 1)
    assert world_size == "2"
    alone = train(tmp_path / "one", objective="bico", optim="sgd", per_device_train_batch_size=8)
    assert json.loads(losses) == pytest.approx(logged(alone), rel=1e-5)
