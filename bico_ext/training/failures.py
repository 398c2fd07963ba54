"""What `bico train` says when training fails: where the last checkpoint is, and how to go on."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from bico_ext.training.complete_checkpoints import SaveError, last_complete


@contextmanager
def telling_how_to_resume(process: str, folder: Path) -> Iterator[None]:
    """If training fails, or SIGTERM ends it, write to stderr where the last checkpoint is and how to go on.

    torchrun ends all processes with SIGTERM when one of them has failed or was killed. At that time the others usually
    wait for it inside a collective operation, where Python would not run a handler. So a thread waits for the signal.
    """

    def tell(what: str) -> None:
        checkpoint = last_complete(folder)
        remedy = (
            f"the last checkpoint is {checkpoint}; start the same command again with --resume"
            if checkpoint
            else "there is no checkpoint yet, so start again; --save_steps says how often one is saved"
        )
        print(f"bico train: {process} {what}; {remedy}", file=sys.stderr, flush=True)

    def ignore(*_: object) -> None:
        """Make Python note the signal in the pipe. A later handler, as of `enable_jit_checkpoint`, takes over."""

    def wait_for_end() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is ignore:
                tell("was ended by SIGTERM")
                os._exit(128 + signal.SIGTERM)
        os.close(reading)

    def forget_in_child() -> None:  # a worker of the data loader ends by SIGTERM, and its parent does not
        if signal.getsignal(signal.SIGTERM) is ignore:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    handler = signal.signal(signal.SIGTERM, ignore)
    earlier = signal.set_wakeup_fd(writing)
    os.register_at_fork(after_in_child=forget_in_child)
    Thread(target=wait_for_end, daemon=True).start()
    try:
        yield
    except SaveError:  # says it already
        raise
    except Exception:
        tell("failed")
        raise
    finally:
        signal.set_wakeup_fd(earlier)
        signal.signal(signal.SIGTERM, handler)
        os.close(writing)  # ends the thread
