"""Kernels of several instruction sets in one binary: which runs, how that is chosen, and that none leaks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bico_ext._C as _C
from bico_ext import environment

OPS = Path(_C.__file__).with_name("_ops.so")
# What marks machine code that a CPU without AVX-512 cannot run: 512-bit registers, the upper 16 of the 32 vector
# registers, mask registers, tiles.
BEYOND_AVX2 = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b|%tmm")


def run(program: str, isa: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "BICO_ISA": isa}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


USE = """
import torch
from bico_ext import split_triangle_attention
q = torch.ones(1, 1, 4, 8)
split_triangle_attention(q, q, q, torch.ones(1, 4, 8), torch.zeros(1, 4, 8))
"""


def test_the_best_supported_set_is_chosen(monkeypatch):
    supported = environment.describe()["instruction_sets"]
    wanted = os.environ.get("BICO_ISA")
    best = next(isa for isa in ("amx", "avx512_bf16", "avx512", "avx2") if isa in supported)
    assert environment.describe()["kernels"] == (wanted or best)


def test_a_set_can_be_named():
    program = USE + "import bico_ext._C as c; print(c.chosen_instruction_set())"
    assert run(program, "avx2").stdout == "avx2\n"


def test_an_unknown_set_is_named():
    result = run(USE, "avx3")
    assert "RuntimeError: BICO_ISA must be one of amx, avx512_bf16, avx512, avx2, got avx3" in result.stderr


def test_a_set_that_this_cpu_lacks_is_named():
    missing = [isa for isa, supported in _C.instruction_sets().items() if not supported]
    if not missing:
        pytest.skip("this CPU has every instruction set")
    message = f"BICO_ISA is {missing[0]}, which this CPU lacks; it has: "
    assert message in run(USE, missing[0]).stderr


def functions_beyond_avx2(library: Path) -> list[str]:
    """Names of the functions that hold an instruction of AVX-512 or AMX."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", "--demangle", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found, name = [], ""
    for line in listing.splitlines():
        header = re.fullmatch(r"[0-9a-f]+ <(.*)>:", line)
        if header:
            name = header[1]
        elif BEYOND_AVX2.search(line) and (not found or found[-1] != name):
            found.append(name)
    return found


@pytest.fixture(scope="session")
def objects() -> list[Path]:
    """The object files of the build, which, other than the library, have names for all functions."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump (binutils)")
    root = Path(__file__).parent.parent / "build"
    newest = max(root.glob("cp3*/CMakeFiles/kernels_avx2.dir"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        pytest.skip("needs the build folder of an editable installation")
    return sorted(newest.parent.rglob("*.o"))


def test_code_beyond_avx2_has_names_of_its_own(objects):
    """The linker keeps one of several equal names: one compiled for AVX-512 must not serve an AVX2 machine."""
    seen = set()
    for path in objects:
        folder = next(part for part in path.parts if part.endswith(".dir"))
        isa = folder.removesuffix(".dir").removeprefix("kernels_")
        names = functions_beyond_avx2(path)
        if isa in ("avx512", "avx512_bf16", "amx"):
            assert names
            seen.add(isa)
        allowed = rf"\bbico::cpu::on_{isa}::" if isa != "avx2" else r"(?!)"
        wrong = [name for name in names if not re.search(allowed, name)]
        assert not wrong, f"{path.name} has {wrong[0]}, which could be kept in the place of an equal name elsewhere"
    assert seen == {"avx512", "avx512_bf16", "amx"}
