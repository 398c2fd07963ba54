"""Several training runs at once, each in a process of its own that the parent watches."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def run_all(
    work: Callable[..., None], arguments: Sequence[tuple[Any, ...]], *, steps: int, jobs: int, label: str
) -> list[str | None]:
    """Call `work(*one, callback)` for each of the arguments, up to `jobs` at a time, sharing the cores.

    Args:
        work: a function of a module (the processes import it); `callback` is a TrainerCallback that counts steps.
        arguments: of each call; they travel to the process.
        steps: optimizer steps of a call, for the progress bar.
        jobs: processes at once.
        label: of the progress bar.

    Returns:
        For each call what it died of, or None. One failure does not stop the others.
    """
    threads = max(1, cores() // jobs)
    context = multiprocessing.get_context("spawn")
    steps_done = context.Value("q", 0)
    failures: list[str | None] = [None] * len(arguments)
    waiting = list(range(len(arguments)))
    running: list[tuple[int, Any, Connection]] = []  # call, its process, where a failure comes from
    with (
        _children_with_threads(threads),
        tqdm(total=len(arguments) * steps, desc=label, unit="step") as bar,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    call = waiting.pop(0)
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(
                        target=_in_process, args=(work, arguments[call], threads, steps_done, sender)
                    )
                    process.start()
                    sender.close()  # now the child's end is the only one
                    running.append((call, process, receiver))
                time.sleep(0.2)
                bar.update(steps_done.value - bar.n)
                for entry in [entry for entry in running if not entry[1].is_alive()]:
                    running.remove(entry)
                    failures[entry[0]] = _failure(*entry[1:])
        finally:  # after Ctrl-C some are left
            for _, process, _ in running:
                process.terminate()
    return failures


_steps_done: Any = None  # in a worker: the shared counter of optimizer steps


class _CountSteps(TrainerCallback):
    """Tells the parent process how far the run is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with _steps_done.get_lock():
            _steps_done.value += 1


def _in_process(
    work: Callable[..., None], arguments: tuple[Any, ...], threads: int, steps_done: Any, failure: Connection
) -> None:
    """One call in its own process; what goes wrong is sent to the parent."""
    global _steps_done
    _steps_done = steps_done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(*arguments, _CountSteps())
    except Exception as error:
        # A text, as not every exception can be pickled and read back; short, as the parent reads only once this process
        # has ended, and a pipe holds 64 KiB.
        failure.send(f"{type(error).__name__}: {error}"[:4000])


def _end_with_parent() -> None:
    """Wait for the parent process, which only a kill ends before its workers, and end this one.

    A worker that went on would write into a folder that the next comparison may have taken.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _failure(process: Any, receiver: Connection) -> str | None:
    """What a process that has ended died of, if it did."""
    try:
        return receiver.recv()
    except EOFError:  # it sent nothing
        if process.exitcode == 0:
            return None
    return f"it was ended from outside (exit code {process.exitcode})"


@contextlib.contextmanager
def _children_with_threads(count: int) -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
