"""Injects faults into `bico compare`, `bico train` and `bico fetch-model`, and checks that nothing is lost by them.

Commands are killed at random moments, find the disk full, or find files damaged. Each is then started again until it
ends, and its results must be those of an uninterrupted run. All the time its files are read, and must be whole. The
exit status is 1 if anything is wrong. `make faults` runs this.
"""

import argparse
import dataclasses
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from commands import write_inputs
from disk_and_damage import damage_trials, disk_trials, may_mount
from tqdm import tqdm
from trials import Trial, Uninterrupted

from bico_ext.files import write_json

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 3  # of one run
# How often each is killed, in relation to the others: what has most parts is killed most often.
SHARES = {"compare": 5, "train": 3, "fetch-model": 2}


def plan(kills: int, commands: list[str], seed: int) -> list[tuple[str, list[tuple[signal.Signals, float]]]]:
    """Draw which commands are killed, by which signals, and when, as parts of an uninterrupted run."""
    drawn = random.Random(seed)
    planned = []
    while kills:
        name = drawn.choices(commands, [SHARES[name] for name in commands])[0]
        count = drawn.randint(1, min(kills, MOST_KILLS))
        planned.append((name, [(drawn.choice(SIGNALS), drawn.random()) for _ in range(count)]))
        kills -= count
    return planned


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="Signals that are sent. Default: 50.")
    parser.add_argument("--seed", type=int, help="Decides what is killed and when. Default: a new one, which is shown.")
    parser.add_argument("--commands", nargs="+", choices=list(SHARES), default=list(SHARES), help="Default: all.")
    parser.add_argument("--only-kills", action="store_true", help="Leave out full disks and damaged files.")
    parser.add_argument(
        "--imported",
        action="store_true",
        help="Fork the commands from this process, which has imported everything. They take less time, and are never "
        "killed while they import.",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the trials; it grows with each.")
    options = parser.parse_args(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that disks are unmounted
    tqdm.monitor_interval = 0  # a thread, which forks would not survive
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = Path(temporary)
        commands = [one for one in write_inputs(folder, not options.imported) if one.name in options.commands]
        print(f"seed {seed}", flush=True)
        whole = {one.name: Uninterrupted(one, folder) for one in tqdm(commands, "uninterrupted")}
        print(", ".join(f"{name} takes {one.seconds:.0f} s of a core" for name, one in whole.items()), flush=True)
        planned = [partial(whole[name].killed, kills=kills) for name, kills in plan(options.kills, list(whole), seed)]
        if not options.only_kills:
            mounts = may_mount(folder / "disk")
            print(f"a full disk is {'a small tmpfs' if mounts else 'a limit for the size of files'}", flush=True)
            for one in whole.values():
                planned += [*disk_trials(one, mounts), *damage_trials(one)]
        for number, trial in enumerate(tqdm(planned, "trials")):
            out = folder / f"{number}" / "out"
            out.parent.mkdir()
            trials.append(trial(out))
            tqdm.write(rows(trials[-1]), file=sys.stdout)
            shutil.rmtree(out.parent)
            if options.output:
                write_json(options.output, {"seed": seed, "trials": [dataclasses.asdict(trial) for trial in trials]})
    wrong = sum(bool(trial.wrong) for trial in trials)
    faults = Counter(fault.split()[0] for trial in trials for fault in trial.faults)
    print(f"{len(trials)} trials, {wrong} wrong; {', '.join(f'{count} {fault}' for fault, count in faults.items())}")
    return 1 if wrong else 0


def rows(trial: Trial) -> str:
    """Return the rows of a trial in the table: command, fault, exit status; number of starts, verdict."""
    lines = [
        f"{trial.command:<11}  {fault:<72}  exit {status!s:>4}"
        for fault, status in zip(trial.faults, trial.exits, strict=True)
    ]
    verdict = (
        "WRONG: " + "; ".join(trial.wrong) if trial.wrong else "equal, bit for bit" if trial.same_bits else "equal"
    )
    return "\n".join([*lines, f"{'':<11}  started {trial.starts} times: {verdict}"])


if __name__ == "__main__":
    sys.exit(main())
