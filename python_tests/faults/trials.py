"""A trial: a command meets faults, is started again until it ends, and must then have lost nothing."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import Command, ended, kill, log_of, orphans, processor_seconds
from outcomes import Watcher, contents, differences, last_written, leftovers, results, same_bits


@dataclasses.dataclass
class Trial:
    """What happened to one output folder.

    Attributes:
        command: the name of the command.
        faults: what was done to it, in order.
        exits: the exit status after each fault.
        starts: how often the command was started.
        same_bits: whether all weights are those of the uninterrupted run, bit for bit.
        wrong: what must not be; the trial is good if this is empty.
    """

    command: str
    faults: list[str] = dataclasses.field(default_factory=list)
    exits: list[int | None] = dataclasses.field(default_factory=list)
    starts: int = 0
    same_bits: bool = False
    wrong: list[str] = dataclasses.field(default_factory=list)


class Uninterrupted:
    """A command and what it does if nothing happens to it.

    Attributes:
        command: the command.
        seconds: the processor time that it takes.
        out: its output folder.
        results: what is in that folder.
    """

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.out = command, folder / f"whole-{command.name}" / command.name
        self.out.parent.mkdir()
        process = command.start(self.out)
        self.seconds = processor_seconds(process)
        if ended(process) != 0:
            raise RuntimeError(f"{command.name} fails though nothing happened to it: {_end_of_log(self.out)}")
        self.results = results(self.out)

    def killed(self, out: Path, kills: list[tuple[Any, float]]) -> Trial:
        """Kill the command, start it again, kill it again and so on; then let it end.

        Args:
            out: the output folder.
            kills: signals, and when they come after the start, as parts of the processor time of the uninterrupted run.
        """
        trial = Trial(self.command.name)
        for number, part in kills:
            process = self.command.start(out, again=trial.starts > 0)  # forked before a thread watches
            trial.starts += 1
            with self.watching(trial, out):
                processor_seconds(process, part * self.seconds)
                if process.exitcode is None:
                    trial.faults.append(f"{number.name} at {part * self.seconds:.1f} s, {last_written(out)}")
                    kill(process, number)
                else:
                    trial.faults.append(f"ended before {number.name}")
                session, status = process.pid, ended(process)
                trial.wrong += orphans(session)
            trial.exits.append(status)
            if status is None:
                trial.wrong.append(f"hangs after {number.name}")
            if status == 0:
                trial.wrong += differences(results(out), self.results)
        return self.resumed(trial, out)

    def resumed(self, trial: Trial, out: Path, partial: bool = False) -> Trial:
        """Start the command again until it ends, compare, and start it once more, which must change nothing.

        Args:
            trial: what happened so far.
            out: the output folder.
            partial: as for `watching`, until the command ends.
        """
        for again in False, True:
            before = contents(out) if again else {}
            process = self.command.start(out, again=trial.starts > 0)
            with self.watching(trial, out, partial and not again):
                status = ended(process)
            trial.starts += 1
            if status != 0:
                trial.wrong.append(f"cannot go on (exit status {status}): {_end_of_log(out)}")
                return trial
            got = results(out)
            trial.wrong += differences(got, self.results)
            trial.same_bits = same_bits(got, self.results)
            if again:
                after = contents(out)
                changed = sorted(name for name in before | after if before.get(name) != after.get(name))
                trial.wrong += [f"{name} is changed by another start" for name in changed]
        trial.wrong += [f"{path} is left" for path in leftovers(out)]
        return trial

    @contextmanager
    def watching(self, trial: Trial, out: Path, partial: bool = False) -> Iterator[None]:
        """Read the results all the time, which must be whole: there are none, or those of the uninterrupted run.

        Args:
            trial: what is wrong is added to it.
            out: the output folder.
            partial: whether results.json may also have only some of the runs, as where others have failed.
        """
        watcher = Watcher(out)
        with watcher.watching():
            yield
        trial.wrong += watcher.found
        for version in [] if partial else watcher.versions:
            trial.wrong += [f"at some moment, {what}" for what in differences(version, self.results["results.json"])]


def _end_of_log(out: Path) -> str:
    return log_of(out).read_text(errors="replace").strip()[-500:]
