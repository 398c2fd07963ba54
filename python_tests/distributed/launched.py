"""Starts the programs of this folder in several processes, as a user would with torchrun or accelerate."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def launched(*command: str | Path, launcher: tuple[str, ...] = TORCHRUN) -> subprocess.CompletedProcess[str]:
    """Run a script and its arguments, or the bico command after `--no-python`, in processes of one thread each."""
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
