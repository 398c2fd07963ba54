"""The checks of machine code find what they look for."""

import pytest
from cuda_static_checks import Kernel, faults, parse_machine_code, parse_usage

USAGE = """
ptxas info    : Compiling entry function '_Z14forward_kernelv' for 'sm_80'
ptxas info    : Function properties for _Z14forward_kernelv
    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 728 bytes cmem[0]
ptxas info    : Compiling entry function '_Z8sum_rowsv' for 'sm_80'
ptxas info    : Function properties for _Z8sum_rowsv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 824 bytes cmem[0]
"""
MACHINE_CODE = """
        Function : _Z14forward_kernelv
    .headerflags    @"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;      /* 0x00000a0000017a02 */
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;    /* 0x000000000204783b */
        /*0020*/              @!P0 LDGSTS.E.128 [R2], [R4.64] ;
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0040*/              @P1  EXIT ;
        Function : _Z8sum_rowsv
        /*0000*/                   EXIT ;
"""
GOOD = [Kernel("_Z14forward_kernelv", 255, 0, 0), Kernel("_Z8sum_rowsv", 40, 0, 0)]


def test_the_compilers_report_is_read():
    assert parse_usage(USAGE) == [Kernel("_Z14forward_kernelv", 255, 8, 40), Kernel("_Z8sum_rowsv", 40, 0, 0)]


def test_machine_code_is_read():
    assert parse_machine_code(MACHINE_CODE) == {
        "_Z14forward_kernelv": {"MOV", "LDSM", "LDGSTS", "HMMA", "EXIT"},
        "_Z8sum_rowsv": {"EXIT"},
    }


def test_good_kernels_have_no_faults():
    assert faults(GOOD, parse_machine_code(MACHINE_CODE)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("HMMA", "FFMA", "_Z14forward_kernelv: no products on tensor cores (HMMA)"),
        ("LDSM", "LDS", "_Z14forward_kernelv: no ldmatrix (LDSM)"),
        ("LDGSTS", "LDG", "_Z14forward_kernelv: no asynchronous copies (LDGSTS)"),
        ("MOV R1", "STL [R1]", "_Z14forward_kernelv: uses local memory (STL)"),
        ("_Z8sum_rowsv", "_Z5otherv", "the kernels of the compiler's report and of the machine code differ"),
    ],
)
def test_a_fault_in_the_machine_code_is_named(old, new, fault):
    assert faults(GOOD, parse_machine_code(MACHINE_CODE.replace(old, new))) == [fault]


def test_spills_and_no_report_are_named():
    machine_code = parse_machine_code(MACHINE_CODE)
    assert faults(parse_usage(USAGE), machine_code) == ["_Z14forward_kernelv: 8 bytes of stack, 40 bytes spilled"]
    assert "the compiler reported no kernel" in faults([], machine_code)
