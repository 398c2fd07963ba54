"""What each of two processes runs for test_failing_rank.py: `failing_processes.py HOW ARGUMENTS`, for bico train."""

import ctypes
import os
import signal
import sys
import time
from typing import Any
from unittest.mock import patch

from torch import Tensor

from bico_ext.cli.main import main
from bico_ext.training.trainer import BicoTrainer

training_step = BicoTrainer.training_step


def wait_in_c() -> None:
    """Wait for ever without the GIL, signals or not: lock a mutex twice (`sleep` would return at a signal)."""
    mutex = ctypes.create_string_buffer(64)  # more than any pthread_mutex_t; zeros are its initial value
    library = ctypes.CDLL(None)
    library.pthread_mutex_init(mutex, None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def failing_step(self: BicoTrainer, *args: Any, **kwargs: Any) -> Tensor:
    """Fail in the second process, in the fourth step; the first one waits, as for a collective operation of NCCL."""
    if self.state.global_step == 3 and self.args.process_index == 1:
        if how == "raises":
            raise RuntimeError("no memory left")
        time.sleep(3)  # until the first one waits; before, it would fail by itself
        os.kill(os.getpid(), signal.SIGKILL)
    if self.state.global_step == 3 and how == "is killed":
        wait_in_c()
    return training_step(self, *args, **kwargs)


if __name__ == "__main__":
    how, *arguments = sys.argv[1:]
    with patch.object(BicoTrainer, "training_step", failing_step):
        sys.exit(main(["train", *arguments]))
