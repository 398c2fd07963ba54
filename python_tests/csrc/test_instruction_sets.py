"""Kernels of several instruction sets in one binary: which runs, how that is chosen, and that none leaks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from bico_ext import environment

_C = pytest.importorskip("bico_ext._C", reason="needs the compiled part")

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


CHOSEN = USE + "import bico_ext._C as c; print(c.chosen_instruction_set(), c.why_chosen(), sep=': ')"


def test_the_fastest_supported_set_is_chosen():
    supported = environment.describe()["instruction_sets"]
    intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    order = ["amx", *(() if intel else ("avx512_bf16",)), "avx512", "avx2"]
    best = next(isa for isa in order if isa in supported)
    slower = best == "avx512" and "avx512_bf16" in supported
    reason = "faster than avx512_bf16 on CPUs of Intel" if slower else "the newest that this CPU has"
    assert run(CHOSEN, "").stdout == f"{best}: {reason}\n"


def test_a_set_can_be_named():
    assert run(CHOSEN, "avx2").stdout == "avx2: the environment variable BICO_ISA\n"


def test_info_says_why(monkeypatch):
    told = environment.describe()
    assert told["why_these_kernels"] == _C.why_chosen()
    for name in ("chosen_instruction_set", "why_chosen"):
        monkeypatch.setattr(_C, name, lambda: (_ for _ in ()).throw(RuntimeError("no AVX2")))
    told = environment.describe()
    assert (told["kernels"], told["why_these_kernels"]) == ("none: no AVX2", None)


def test_an_unknown_set_is_named():
    result = run(USE, "avx3")
    assert "RuntimeError: BICO_ISA must be one of amx, avx512_bf16, avx512, avx2, got avx3" in result.stderr


def test_a_set_that_this_cpu_lacks_is_named():
    missing = [isa for isa, supported in _C.instruction_sets().items() if not supported]
    if not missing:
        pytest.skip("this CPU has every instruction set")
    message = f"BICO_ISA is {missing[0]}, which this CPU lacks; it has: "
    assert message in run(USE, missing[0]).stderr


@pytest.fixture(scope="session")
def objects() -> dict[str, Path]:
    """The object files of the kernels by instruction set; other than the library, they have names for all functions."""
    if shutil.which("objdump") is None or shutil.which("nm") is None:
        pytest.skip("needs nm and objdump (binutils)")
    builds = (ROOT / "build").glob("cp3*/CMakeFiles")
    newest = max(builds, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        pytest.skip("needs the build folder of an editable installation")
    found = {isa: newest / f"kernels_{isa}.dir/csrc/cpu/isa/{isa}.cpp.o" for isa in _C.instruction_sets()}
    assert all(path.exists() for path in found.values())
    return found


def lines(*command: object) -> list[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("isa", _C.instruction_sets())
def test_an_instruction_set_shares_no_symbol(objects, isa):
    """The linker keeps one of several equal names: one compiled for AVX-512 must not serve an AVX2 machine."""
    own = re.compile(rf"bico::cpu::on_{isa}::|bico::cpu::{isa}_b?float(16|32|64)$|DW\.ref\.__gxx_personality_v0$")
    listing = lines("nm", "--demangle", "--defined-only", objects[isa])
    shared = [line.split(maxsplit=2)[2] for line in listing if re.match(r"[0-9a-f]+ [A-Zuvw] ", line)]
    assert any(f"{isa}_" in name for name in shared), "the kernels themselves are there"
    wrong = [name for name in shared if not own.search(name)]
    assert not wrong, f"{wrong[0]} could be kept in the place of an equal name elsewhere"


def test_avx2_kernels_hold_nothing_beyond_avx2(objects):
    listing = {isa: lines("objdump", "--disassemble", "--no-show-raw-insn", objects[isa]) for isa in objects}
    assert not [line for line in listing["avx2"] if BEYOND_AVX2.search(line)]
    assert [line for line in listing["avx512"] if BEYOND_AVX2.search(line)], "the pattern finds what it should"
