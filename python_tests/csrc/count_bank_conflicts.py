"""Counts what shared memory costs the CUDA kernels on tensor cores, under the emulator. Needs no GPU.

python python_tests/csrc/count_bank_conflicts.py --head-dims 64 128

A request is one instruction of one warp. It takes as many cycles ("wavefronts") as its busiest bank has words to serve;
those beyond the fewest that its width allows are conflicts. The problem is a small one in bfloat16 with hidden keys.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import emulated
from problems import Case, make_problem

from bico_ext import _emulator

HEAD_DIMS = (32, 64, 80, 96, 128, 256)  # those that the forward is compiled for


class Cost(NamedTuple):
    """Of all requests of one kind: how many, their wavefronts, and the fewest that these could be."""

    requests: int
    wavefronts: int
    fewest: int

    @property
    def conflicts(self) -> int:
        return self.wavefronts - self.fewest


def costs(head_dim: int) -> dict[tuple[str, str], Cost]:
    """By kernel and kind of access, of a forward and a backward."""
    case = Case("banks", S=200, Hq=2, Hkv=1, D=head_dim, B=1, spans="placeholders")
    banks = _emulator.BankCounts()
    attention = emulated.attention("round-robin", "at-issue", banks=banks)
    make_problem(case, torch.bfloat16).run(attention, torch.bfloat16, table_dtype=torch.float32)
    table = banks.table().items()
    return {(kernel, access): Cost(*cost) for kernel, kinds in table for access, cost in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS, help="default: %(default)s")
    options = parser.parse_args()
    print("kernel, head dim, access: requests, wavefronts, conflicts among them")
    for head_dim in options.head_dims:
        for (kernel, access), cost in costs(head_dim).items():
            numbers = f"{cost.requests}, {cost.wavefronts}, {cost.conflicts}"
            print(f"{kernel} {head_dim} {access}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
