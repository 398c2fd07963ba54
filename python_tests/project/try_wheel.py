"""Runs the op's tests on a wheel, in one fresh environment per version of torch: `make test-wheel`.

    python try_wheel.py WHEEL 'torch==2.11.*' torch

Each environment is made in build/ and takes the torch that pip finds for the requirement. It is removed if its tests
pass. The tests come from this source tree, and bico_ext must come from the wheel.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import importlib.util, json, bico_ext
from importlib.metadata import version
print(json.dumps([bico_ext.__file__, version("torch"), importlib.util.find_spec("bico_ext._C") is not None]))
"""


def isolated(python: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Run Python where neither it nor a process that a test starts finds the sources of bico_ext."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BICO_ISA")}
    environment = inherited | {"OMP_NUM_THREADS": "1"}  # as in `make test`
    command = [str(python), "-I", *arguments]
    return subprocess.run(command, text=True, check=False, cwd=python.parent, env=environment, **options)


def check_installed(python: Path, environment: Path) -> str:
    """Return the version of torch, or exit with a sentence if bico_ext is not the compiled one of that environment."""
    asked = isolated(python, "-c", ASK, capture_output=True)
    if asked.returncode:
        sys.exit(f"bico_ext cannot be imported in {environment}: {asked.stderr.strip().splitlines()[-1]}")
    file, torch, compiled = json.loads(asked.stdout)
    if not Path(file).is_relative_to(environment):
        sys.exit(f"bico_ext comes from {Path(file).parent} and not from the wheel installed in {environment}.")
    if not compiled:
        sys.exit(f"The wheel has no compiled part: build it with BICO_BUILD=ON (its bico_ext is {Path(file).parent}).")
    return torch


def try_wheel(wheel: Path, torch: str, environment: Path) -> str:
    """Test the wheel with a torch, and return that torch's version."""
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    tools = ["pytest", "pytest-xdist", "hypothesis"]
    if isolated(python, "-m", "pip", "install", "--progress-bar", "off", "-q", str(wheel), torch, *tools).returncode:
        sys.exit(f"{wheel.name} and {torch} cannot be installed together, as pip says above.")
    version = check_installed(python, environment)
    print(f"== {wheel.name} with torch {version}", flush=True)
    tests = [str(ROOT / "python_tests" / "ops"), "-n", "logical", "--dist", "worksteal"]
    if isolated(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests).returncode:
        sys.exit(f"{wheel.name} fails with torch {version}; {environment} is kept.")
    shutil.rmtree(environment)
    return version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("torch", nargs="+", help="a requirement that pip understands")
    options = parser.parse_args()
    for number, torch in enumerate(options.torch):
        version = try_wheel(options.wheel.resolve(), torch, ROOT / "build" / f"wheel-environment-{number}")
        print(f"== passed with torch {version}", flush=True)


if __name__ == "__main__":
    main()
