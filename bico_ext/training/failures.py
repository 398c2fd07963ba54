"""What `bico train` says when training fails: where the last checkpoint is, and how to go on."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from bico_ext.training.complete_checkpoints import SaveError, last_complete


@contextmanager
def telling_how_to_resume(process: str, folder: Path) -> Iterator[None]:
    """If training fails, or SIGTERM ends it, write to stderr where the last checkpoint is and how to go on.

    torchrun ends all processes with SIGTERM when one of them has failed or was killed. At that time the others usually
    wait for it inside a collective operation, where Python would not run a handler. So a thread waits for the signal.
    Whoever handles SIGTERM already, as `enable_jit_checkpoint` does, goes on doing so.
    """

    telling = threading.Lock()  # never released: one message, also when the signal comes while training fails

    def tell(what: str) -> bool:
        if not telling.acquire(blocking=False):
            return False
        checkpoint = last_complete(folder)
        remedy = (
            f"the last checkpoint is {checkpoint}; start the same command again with --resume"
            if checkpoint
            else "there is no checkpoint yet, so start again; --save_steps says how often one is saved"
        )
        print(f"bico train: {process} {what}; {remedy}", file=sys.stderr, flush=True)
        return True

    def end() -> None:
        if tell("was ended by SIGTERM"):
            os._exit(128 + signal.SIGTERM)

    free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with _on_sigterm(end) if free and threading.current_thread() is threading.main_thread() else nullcontext():
        try:
            yield
        except (SaveError, ValueError):  # the first says it already, the second is about an argument
            raise
        except Exception:
            tell("failed")
            raise


@contextmanager
def _on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Call a function in a thread when the signal arrives."""

    def wait() -> None:
        while number := os.read(reading, 1)[0]:
            if number == signal.SIGTERM:
                act()

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    signal.signal(signal.SIGTERM, _note)
    earlier = signal.set_wakeup_fd(writing)
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(writing, bytes(1))  # the end: no signal has the number 0
        thread.join()
        os.close(reading)
        os.close(writing)


def _note(*_: object) -> None:
    """Do nothing, as a handler: Python then writes the signal's number into the pipe."""


def _forget_in_child() -> None:
    """Undo `_on_sigterm` in a forked process: a worker of the data loader ends by SIGTERM, and its parent does not."""
    if signal.getsignal(signal.SIGTERM) is _note:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_child)
