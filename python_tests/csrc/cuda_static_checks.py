"""Compiles the CUDA kernels for each architecture and looks at the machine code. Needs no GPU.

python python_tests/csrc/cuda_static_checks.py --architectures 80 90 100 120

Each source must compile without a spilled register and without a stack, which local memory would serve; the tensor-core
kernels must hold the instructions that they are written for. Shared memory is within every architecture's limit by a
static_assert of the kernels. The compiler is that of NVIDIA's packages on PyPI (extra "cuda-checks"), else the one on
PATH.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"
SOURCES = ("tensor_core/bfloat16.cu", "tensor_core/float16.cu", "simt/simt.cu")
ARCHITECTURES = (80, 90, 100, 120)
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v,-warn-spills"]
USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
# What a kernel on tensor cores must hold, by the start of the instruction's name in machine code.
NEEDED = {"HMMA": "products on tensor cores", "LDSM": "ldmatrix", "LDGSTS": "asynchronous copies"}
LOCAL = ("LDL", "STL")  # local memory


@dataclass
class Kernel:
    name: str
    registers: int
    stack: int
    spilled: int


def tool(name: str) -> str:
    """Path of a program of the toolkit: of the package of PyPI, or the one on PATH."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob(f"cu*/bin/{name}"):
            return str(path)
    found = shutil.which(name)
    if found is None:
        sys.exit(f"{name} is not installed; install the extra cuda-checks: pip install -e '.[cuda-checks]'")
    return found


def parse_usage(text: str) -> list[Kernel]:
    """What ptxas -v says of each kernel."""
    return [
        Kernel(m["name"], int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]))
        for m in USAGE.finditer(text)
    ]


def parse_machine_code(text: str) -> dict[str, set[str]]:
    """The names of the instructions of each function, without their modifiers, from cuobjdump -sass."""
    functions: dict[str, set[str]] = {}
    for part in text.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)", body)
        functions[name.strip()] = set(found)
    return functions


def faults(kernels: list[Kernel], machine_code: dict[str, set[str]]) -> list[str]:
    """What is wrong, a sentence each."""
    wrong = [] if kernels else ["the compiler reported no kernel"]
    for kernel in kernels:
        if kernel.stack or kernel.spilled:
            wrong.append(f"{kernel.name}: {kernel.stack} bytes of stack, {kernel.spilled} bytes spilled")
    if {kernel.name for kernel in kernels} != set(machine_code):
        wrong.append("the kernels of the compiler's report and of the machine code differ")
    for name, instructions in machine_code.items():
        wrong += [f"{name}: uses local memory ({bad})" for bad in LOCAL if bad in instructions]
        if re.search("(forward|backward)_kernel", name):
            wrong += [f"{name}: no {what} ({need})" for need, what in NEEDED.items() if need not in instructions]
    return wrong


def compile_kernels(source: Path, architecture: int, *options: str) -> tuple[str, str | None]:
    """What the compiler says, and the machine code of `source` as cuobjdump lists it; None if it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "kernels.cubin")
        command = [tool("nvcc"), *FLAGS, *options, f"-arch=sm_{architecture}", "-cubin", str(source), "-o", cubin]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        report = built.stdout + built.stderr
        if built.returncode != 0:
            return report, None
        path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])  # cuobjdump starts nvdisasm
        dump = [tool("cuobjdump"), "-sass", cubin]
        listing = subprocess.run(dump, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
        return report, listing.stdout


def check(source: str, architecture: int) -> tuple[str, list[str]]:
    """A line about the kernels of a source on an architecture, and what is wrong."""
    title = f"sm_{architecture} {source}"
    report, listing = compile_kernels(CUDA / source, architecture)
    if listing is None:
        return title, [report]
    kernels = parse_usage(report)
    most = max((kernel.registers for kernel in kernels), default=0)
    found = [f"{title}: {fault}" for fault in faults(kernels, parse_machine_code(listing))]
    return f"{title}: {len(kernels)} kernels, up to {most} registers", found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, help="default: %(default)s")
    parser.add_argument("--sources", nargs="+", default=SOURCES, choices=SOURCES, help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time; default: 2")
    options = parser.parse_args()
    jobs = [(source, architecture) for architecture in options.architectures for source in options.sources]
    wrong: list[str] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for line, found in pool.map(lambda job: check(*job), jobs):
            print(line, *found, sep="\n  ", flush=True)
            wrong += found
    print(f"{len(jobs)} compilations, {len(wrong)} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
