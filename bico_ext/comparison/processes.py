"""Several training runs at once, each in its own process under a parent that waits for all of them."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from bico_ext import environment


def check_not_imported_by_child() -> None:
    """Raise an error if this is a process of a comparison that has just begun, and imports the user's script.

    Raises:
        RuntimeError: the caller is not under `if __name__ == "__main__":`.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself checks it
        raise RuntimeError(
            "a comparison starts processes, and each of them imports this script; call compare() under "
            '`if __name__ == "__main__":`'
        )


def run_all(
    work: Callable[..., None], arguments: Sequence[tuple[Any, ...]], *, steps: Sequence[int], jobs: int, label: str
) -> list[str | None]:
    """Call `work(*items, callback)` for each tuple of arguments, each call in its own process.

    At most `jobs` processes run at once. They share the cores equally. After some steps, one line on stderr says how
    long the training will take.

    Args:
        work: a function of a module, because each process imports it. `callback` is a TrainerCallback that counts
            optimizer steps.
        arguments: one tuple for each call. They must be picklable.
        steps: the number of optimizer steps of each call, for the progress bar and the estimate of the time.
        jobs: the number of processes at once.
        label: the text of the progress bar.

    Returns:
        For each call the error that ended it, or None. A failure does not stop the other calls.
    """
    threads = max(1, environment.cores() // jobs)
    # Each process is forked from a server that has imported the work's module once: importing torch and transformers
    # takes 7 seconds of one core.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    steps_done = context.Value("q", 0)
    failures: list[str | None] = [None] * len(arguments)
    waiting = list(range(len(arguments)))
    running: list[tuple[int, Any, Connection]] = []  # index of the call, its process, the pipe for its error
    with (
        _children_with_threads(threads),
        tqdm(total=sum(steps), desc=label, unit="step") as bar,
    ):
        estimate = _Estimate(steps, min(jobs, len(steps)))
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    call = waiting.pop(0)
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(
                        target=_in_process, args=(work, arguments[call], threads, steps_done, sender)
                    )
                    running.append((call, process, receiver))  # before Ctrl-C can come between
                    process.start()
                    sender.close()  # only the child's copy stays open, so the pipe ends with the child
                time.sleep(0.2)
                bar.update(steps_done.value - bar.n)
                estimate.show(steps_done.value)
                for entry in [entry for entry in running if not entry[1].is_alive()]:
                    running.remove(entry)
                    failures[entry[0]] = _failure(*entry[1:])
        finally:  # after Ctrl-C, some processes are still running
            for _, process, _ in running:
                if process.pid is not None:
                    process.terminate()
    return failures


class _Estimate:
    """Says once, after ten steps of each process, how long the training will take.

    The first step of each process is not timed, as it waits for imports and the model.
    """

    def __init__(self, steps: Sequence[int], jobs: int) -> None:
        self.steps, self.jobs = steps, jobs
        self.first: tuple[int, float] | None = None  # the steps done when the clock was started, and its time
        self.shown = False

    def show(self, done: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = (done, now) if done >= self.jobs else None
        elif not self.shown and done - self.first[0] >= 10 * self.jobs and now - self.first[1] >= 5:
            rate = (done - self.first[0]) / (now - self.first[1])  # steps a second, of all processes
            each, all_ = max(self.steps) * self.jobs / rate, (sum(self.steps) - done) / rate
            tqdm.write(
                f"training takes about {_duration(each)} per run and {_duration(all_)} for all that is left, with "
                f"{self.jobs} at once, evaluations not counted",
                file=sys.stderr,
            )
            self.shown = True


def _duration(seconds: float) -> str:
    """Return a duration to two digits or so.

    Example:
        >>> _duration(100), _duration(1860), _duration(9000)
        ('2 min', '31 min', '2.5 h')
    """
    minutes = seconds / 60
    return f"{seconds / 3600:.1f} h" if minutes >= 100 else f"{max(1, round(minutes))} min"


_steps_done: Any = None  # in a worker process: the shared counter of optimizer steps


class _CountSteps(TrainerCallback):
    """Reports the worker's progress to the parent process."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with _steps_done.get_lock():
            _steps_done.value += 1


def _in_process(
    work: Callable[..., None], arguments: tuple[Any, ...], threads: int, steps_done: Any, failure: Connection
) -> None:
    """Make one call in this worker process, and send its error, if there is one, to the parent."""
    global _steps_done
    _steps_done = steps_done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading and saving, which would break up the bar of the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(*arguments, _CountSteps())
    except Exception as error:
        # Sent as text, because some exceptions cannot be unpickled. Cut, because the parent reads only after this
        # process has ended, and a pipe holds 64 KiB.
        failure.send(f"{type(error).__name__}: {error}"[:4000])


def _end_with_parent() -> None:
    """Wait for the end of the parent process, and then end this one.

    The parent ends before its workers only if it is killed. A worker that continued would write into a folder that the
    next comparison may have taken.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _failure(process: Any, receiver: Connection) -> str | None:
    """Return the error of a process that has ended, or None if it succeeded."""
    try:
        return receiver.recv()
    except EOFError:  # the process sent no error
        if process.exitcode == 0:
            return None
    return f"the process ended without an error message (exit code {process.exitcode})"


@contextlib.contextmanager
def _children_with_threads(count: int) -> Iterator[None]:
    """Set OMP_NUM_THREADS for the server of the processes, if the block starts it; torch's threads are set in each."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
