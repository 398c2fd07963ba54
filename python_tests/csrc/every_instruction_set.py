"""Runs the op's tests once for each instruction set that this CPU has, and says which it lacks.

Of a build for tests it also runs those of the CUDA kernels under the emulator. Of the installed one it leaves out the
chosen set, which `make test` has run.

python python_tests/csrc/every_instruction_set.py                            # the installed build
python python_tests/csrc/every_instruction_set.py --package DIR              # one with BICO_SANITIZE, BICO_EMULATOR
python python_tests/csrc/every_instruction_set.py --package DIR --covered    # one with --coverage in place of the first
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS_FOLDER = Path(__file__).parents[1]  # not the root, where Python would import the sources
TESTS = ["ops/test_attention.py", "ops/test_attention_contract.py"]
EMULATED = ["ops/test_attention.py", "csrc/test_cuda_kernels.py", "emulator"]
QUICK = "bfloat16 and not 257 or nan or offset or strided or test_emulator or test_banks"  # of the emulated ones
ASK = """
import json, bico_ext._C as c
print(json.dumps([c.instruction_sets(), c.sanitized, c.__file__, c.chosen_instruction_set()]))
"""


def runtime(name: str) -> str:
    """Path of one of the compiler's sanitizer libraries."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def python(package: Path | None, sanitized: bool) -> tuple[list[str], dict[str, str]]:
    """The command that starts Python with that package, and its environment."""
    if package is None:
        return [sys.executable], dict(os.environ)
    # -S leaves out the .pth files of site-packages, among them the one of an editable installation.
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.resolve()), *others])}
    if not sanitized:
        return [sys.executable, "-S"], environment
    preload = f"{runtime('libasan.so')}:{runtime('libubsan.so')}"
    return [sys.executable, "-S"], {
        **environment,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves many blocks to the end of its process
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="folder of the package of a build for tests")
    parser.add_argument("--covered", action="store_true", help="that build counts lines and has no sanitizers")
    options, pytest_arguments = parser.parse_known_args()
    command, environment = python(options.package, not options.covered)
    asked = subprocess.run(
        [*command, "-c", ASK], cwd=TESTS_FOLDER, env=environment, capture_output=True, text=True, check=True
    )
    sets, sanitized, where, chosen = json.loads(asked.stdout)
    for_tests = options.package is not None
    if for_tests and (sanitized == options.covered or options.package.resolve() not in Path(where).resolve().parents):
        expected = "without BICO_SANITIZE, as --covered was given" if options.covered else "with BICO_SANITIZE"
        parser.error(f"--package must hold a build {expected}; imported {where}, sanitized: {sanitized}")
    if not any(sets.values()):
        parser.error("this CPU has none of the instruction sets that there are kernels for")
    here = [isa for isa, supported in sets.items() if supported]
    if not for_tests:
        here.remove(chosen)  # `make test` has run it
    runs = [(f"BICO_ISA={isa}", {"BICO_ISA": isa}, ["--device", "cpu", *TESTS]) for isa in here]
    if for_tests:  # elsewhere `make test` has run them
        runs.append(("CUDA kernels, emulated", {}, ["--device", "emulated-cuda-random", *EMULATED, "-k", QUICK]))

    def finished(run: tuple[str, dict[str, str], list[str]]) -> int:
        name, variables, tests = run
        # --capture=sys leaves the sanitizers' reports, which end the process, outside of pytest's own output.
        arguments = ["-m", "pytest", "-q", "--capture=sys", *pytest_arguments, *tests]
        process = subprocess.run(
            [*command, *arguments],
            cwd=TESTS_FOLDER,
            env={"OMP_NUM_THREADS": "1", **environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(f"== {name}{', sanitized' if sanitized else ''}\n{process.stdout}", end="", flush=True)
        return process.returncode

    # One run per core, the longest first: tests are too small to use more than one core each.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        if any(list(pool.map(finished, reversed(runs)))):
            return 1
    lacking = [isa for isa, supported in sets.items() if not supported]
    if lacking:
        print(f"== not run, as this CPU lacks them: {', '.join(lacking)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
