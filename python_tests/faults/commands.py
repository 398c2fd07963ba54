"""The commands that faults are injected into, with inputs so small that each ends in seconds, and their processes."""

import dataclasses
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from run_bico import bico
from tiny_gguf import known_tiny, write_gguf, write_wheels
from tiny_training import write_facts_and_model

from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate

PROGRAM = Path(__file__).with_name("run_bico.py")
SECONDS_TO_END = 600  # a process that has not ended by then hangs; a loaded machine is no fault
TICKS = os.sysconf("SC_CLK_TCK")  # of processor time, per second
# Rounding in float32 decides no answer. Checkpoints coincide with log entries, one in 25 steps.
COMPARE = """compare --setting pretrained --systems ntp infill --pretrain_steps 10 --steps 60 --warmup_steps 5
    --bf16 false --curve_points 2 --layers 1 --hidden_size 32 --batch_size 4 --max_new_tokens 4 --checkpoint_minutes 0
    --jobs 2 --data"""
# Here, too: as with the Trainer of transformers, a resumed run logs the mean loss since its checkpoint.
TRAIN = """train --max_steps 40 --logging_steps 5 --save_steps 5 --save_total_limit 1 --use_cpu
    --per_device_train_batch_size 4 --report_to none --disable_tqdm true"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command without its output folder.

    Attributes:
        name: "compare", "train" or "fetch-model".
        arguments: its command line.
        inputs: the folder of `write_inputs`.
        resume: what is added to the command line when the command is started again.
        imports: whether each process starts from nothing, as a user's does; else it is forked from this one, which
            has imported everything, and starts to work at once.
    """

    name: str
    arguments: list[str]
    inputs: Path
    resume: list[str]
    imports: bool

    def start(self, out: Path, again: bool = False, largest_file: int | None = None) -> BaseProcess:
        """Start the command in a session of its own; its output is added to `log_of(out)`.

        Args:
            out: the output folder.
            again: whether to resume.
            largest_file: if given, the bytes that each file may have.
        """
        arguments = [*self.arguments, "--output-dir", str(out), *(self.resume if again else [])]
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(self.inputs, arguments, self.imports, log_of(out), largest_file)
        )
        process.start()
        return process


def _work(inputs: Path, arguments: list[str], imports: bool, log: Path, largest_file: int | None) -> None:
    fork = multiprocessing.get_context("fork")
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["OMP_NUM_THREADS"] = "1"
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    if imports:
        os.execv(sys.executable, [sys.executable, str(PROGRAM), str(inputs), *arguments])
    # Also for the processes of a comparison, whose server would import everything anew: 7 seconds of a core.
    multiprocessing.get_context = lambda method=None: fork
    sys.exit(bico(inputs, arguments))


def write_inputs(folder: Path, imports: bool) -> list[Command]:
    """Write facts, a model and a wheel into a folder, and return the commands that use them."""
    write_facts_and_model(folder)
    write_facts(generate(names_first=1, descriptions_first=1, both=1, pretraining=1), folder / "more")
    (folder / "index").mkdir()
    gguf = folder / "tiny.gguf"
    model = write_gguf(gguf)
    known = known_tiny(write_wheels(folder / "index", gguf.read_bytes()), model)
    (folder / "known.json").write_text(json.dumps(dataclasses.asdict(known)))
    train = [*TRAIN.split(), "--model", str(folder / "model"), "--data", str(folder / "facts")]
    return [
        Command("compare", [*COMPARE.split(), str(folder / "more")], folder, ["--resume"], imports),
        Command("train", train, folder, ["--resume"], imports),
        Command("fetch-model", ["fetch-model", "tiny"], folder, [], imports),
    ]


def ended(process: BaseProcess) -> int | None:
    """Wait for the end of a process and return its exit status; None if it hangs, and is killed."""
    deadline = time.monotonic() + SECONDS_TO_END
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.02)  # join() with a time limit returns only at the end of a process that has called exec
    if process.exitcode is not None:
        return process.exitcode
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return None


def kill(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal: SIGINT to all processes of the command, as a terminal does; others to the first one."""
    if number is signal.SIGINT:
        with suppress(ProcessLookupError):  # it has not yet made its session
            os.killpg(process.pid, number)
            return
    os.kill(process.pid, number)  # not joined, so its number is still its own


def orphans(session: int) -> list[str]:
    """Wait for the end of what a process has started; return what does not end, and kill it."""
    deadline = time.monotonic() + SECONDS_TO_END
    while (left := {pid: name for pid, name, _ in _members(session)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return [f"process {pid} ({name}) is left" for pid, name in left.items()]


def processor_seconds(process: BaseProcess, most: float = math.inf) -> float:
    """Wait until a command and all that it started have used some processor time, or until it ends.

    Moments are given by this time because it depends little on what else the machine does.

    Returns:
        The time that was used.
    """
    used, deadline = 0.0, time.monotonic() + SECONDS_TO_END
    while process.exitcode is None and used < most and time.monotonic() < deadline:
        used = max(used, sum(ticks for *_, ticks in _members(process.pid)) / TICKS)
        time.sleep(0.02)
    return used


def _members(session: int) -> Iterator[tuple[int, str, int]]:
    """The processes of a session that have not ended, their names, and the ticks that they and their children used."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = file.read_text().partition(" ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, _, rest = rest.rpartition(") ")
        state, _, _, its_session, *others = rest.split()
        if int(its_session) == session and state not in "ZX":
            yield int(pid), name.lstrip("("), sum(map(int, others[7:11]))  # user, system; those of children that ended


def log_of(out: Path) -> Path:
    """Return the file with what a command wrote to its terminal. It is not on the disk of the output folder."""
    return out.parent.with_name(f"{out.parent.name}.log")
