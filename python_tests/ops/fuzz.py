"""Compares the kernels with the dense definition on random problems, as many as it is asked for.

`make test` runs a few hundred of these problems. This runs thousands with each instruction set of the CPU, with the
other backends, and with the CUDA kernels under the emulator, in chunks with a seed of their own. The counts are written
after each chunk, and the same command continues from there. hypothesis shrinks a problem that fails; its text is
recorded, and --problem runs it again.

python python_tests/ops/fuzz.py --cases 10000 --seed 7 --output-dir out/fuzz
python python_tests/ops/fuzz.py --targets avx2 --problem "RandomProblem(case=Case(...), ...)"
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import random_problems
import torch
from devices import EMULATORS, EVERY, by_flex, present
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from problems import Case
from random_problems import SMALL, Layout, RandomProblem, emulations
from tqdm import tqdm

from bico_ext import environment
from bico_ext.files import atomic_write

CHUNK = 250


def targets() -> list[str]:
    """What can be tested here."""
    compiled = environment.describe()["instruction_sets"] if "cpu" in present() else []
    return [*compiled, "portable", *(name for name in present() if name in EMULATORS), "flex"]


def judge(target: str, problem: RandomProblem, how: dict[str, Any]) -> None:
    """Raise an AssertionError if the target's results are not as good as those of torch."""
    if target == "flex":
        random_problems.assert_right(by_flex, problem, gradients=False)  # it has no backward on the CPU
    else:
        random_problems.assert_right(partial(EVERY.get(target, EVERY["cpu"]), **how), problem)


def run_chunk(target: str, seed: int, cases: int, progress: Callable[[], Any]) -> tuple[int, str | None]:
    """Return how many cases ran and, if one failed, what hypothesis says about the smallest that does."""
    ran, failed = 0, False
    limits, hows = (SMALL, emulations) if target in EMULATORS else ({}, st.just({}))

    @seeded(seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(random_problems.random_problems(**limits), hows)
    def check(problem: RandomProblem, how: dict[str, Any]) -> None:
        nonlocal ran, failed
        if not failed:  # what follows shrinks
            ran += 1
            progress()
        try:
            judge(target, problem, how)
        except BaseException:
            failed = True
            raise

    try:
        check()
    except Exception as error:
        return ran, "".join(traceback.format_exception(error))
    return ran, None


def work(target: str, options: argparse.Namespace) -> None:
    """Run chunks until the target has its cases; its record is written after each."""
    torch.use_deterministic_algorithms(True)  # torch fills what the op allocates with NaN
    warnings.filterwarnings("ignore")  # of what is slow: flex runs eagerly, and some tensors are not contiguous
    path = options.output_dir / "results.json"
    results = json.loads(path.read_text())
    record = results["targets"].setdefault(target, {"cases": 0, "chunks": 0, "seconds": 0.0, "failures": []})
    with tqdm(total=options.cases, initial=record["cases"], desc=target, unit="case", mininterval=5) as bar:
        while record["cases"] < options.cases:
            begin = time.monotonic()
            seed = options.seed + record["chunks"]
            count = min(CHUNK, options.cases - record["cases"])
            ran, failure = run_chunk(target, seed, count, bar.update)
            record["cases"] += ran
            record["chunks"] += 1
            record["seconds"] = round(record["seconds"] + time.monotonic() - begin, 1)
            if failure:
                record["failures"].append({"seed": seed, "report": failure})
                tqdm.write(failure)
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(results, indent=1) + "\n")


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """Return the counts of an earlier run with the same seed, or empty ones."""
    path = options.output_dir / "results.json"
    if path.exists():
        results = json.loads(path.read_text())
        if options.seed in (None, results["seed"]):
            return results
        raise SystemExit(
            f"{path} has seed {results['seed']}, not {options.seed}; remove it, or name another --output-dir"
        )
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    results = {"seed": seed, "chunk": CHUNK, "environment": environment.describe(), "targets": {}}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="for each target; default: 10000")
    parser.add_argument("--seed", type=int, help="of the first chunk; default: that of the output, or a random one")
    parser.add_argument("--targets", nargs="+", choices=targets(), default=targets(), help="default: all of them")
    parser.add_argument("--output-dir", type=Path, default=Path("out/fuzz"), help="default: out/fuzz")
    parser.add_argument("--problem", help="the text of one problem, to run it alone")
    parser.add_argument("--how", default="{}", help="with --problem, for the emulator: its text")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.problem:
        names = {"RandomProblem": RandomProblem, "Case": Case, "Layout": Layout}
        for target in options.targets:
            judge(target, eval(options.problem, names), eval(options.how))
        return 0
    if options.worker:
        work(*options.targets, options)
        return 0

    results = begin(options)
    print(f"seed {results['seed']}, {options.cases} cases for each of: {', '.join(options.targets)}", flush=True)
    ended = []
    for target in options.targets:  # each in a process of its own, which has one instruction set and may crash
        command = [sys.executable, "-X", "faulthandler", __file__, "--worker", "--targets", target]
        command += ["--cases", str(options.cases), "--seed", str(results["seed"])]
        command += ["--output-dir", str(options.output_dir)]
        isa = {"BICO_ISA": target} if target in results["environment"]["instruction_sets"] else {}
        environment_of_worker = {"OMP_NUM_THREADS": "1", **os.environ, **isa}
        code = subprocess.run(command, env=environment_of_worker, check=False).returncode
        if code:
            ended.append(f"{target}: its process ended with {code}")

    records = json.loads((options.output_dir / "results.json").read_text())["targets"]
    for target, record in records.items():
        print(f"{target}: {record['cases']} cases, {len(record['failures'])} failures, {record['seconds']:.0f} s")
    print("\n".join(ended), end="\n" if ended else "")
    return bool(ended) or any(record["failures"] for record in records.values())


if __name__ == "__main__":
    sys.exit(main())
