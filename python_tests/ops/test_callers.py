"""Who may call the compiled op, and how often: threads, forked processes, workers of a data loader, for ever."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from devices import needs_compiled
from problems import Case, make_problem
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bico_ext.ops.attention import split_triangle_attention

pytestmark = needs_compiled

PROBLEMS = [
    make_problem(case, torch.float32)
    for case in (
        Case("gqa", S=300, Hq=4, Hkv=2, D=32, spans="infill"),
        Case("packed", S=400, B=1, packed=(150, 0, 1, 249), D=64),
        Case("causal", S=257, Hkv=1, D=16, spans="causal"),
    )
]


def results(place: int) -> dict[str, Tensor]:
    return PROBLEMS[place].run(split_triangle_attention, torch.float32)


def same(place: int, expected: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(result, expected[place][name]) for name, result in results(place).items())


def test_several_python_threads_at_once():
    """The op releases the GIL, so their calls overlap; each thread of torch keeps a workspace."""
    expected = [results(place) for place in range(len(PROBLEMS))]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda number: same(number % len(PROBLEMS), expected), range(48)))


class Results(Dataset):
    """What a worker process computes, as a list of tensors."""

    def __len__(self) -> int:
        return len(PROBLEMS)

    def __getitem__(self, place: int) -> list[Tensor]:
        return list(results(place).values())


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_of_a_data_loader():
    """They are forked from a process whose threads have run the op, and start without these threads."""
    expected = [list(results(place).values()) for place in range(len(PROBLEMS))]
    loader = DataLoader(Results(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for received, wanted in zip(loader, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(received, wanted, strict=True))


GROWTH = """
import torch
from bico_ext.ops.attention import split_triangle_attention

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def call(length):
    q, k, v = (torch.randn(1, 2, length, 16, requires_grad=True) for _ in range(3))
    cos, sin = torch.ones(1, length, 16), torch.zeros(1, length, 16)
    split_triangle_attention(q, k, v, cos, sin, span_ids=torch.zeros(1, length, dtype=torch.int32)).sum().backward()

torch.manual_seed(0)
lengths = torch.randint(1, 100, (1000,)).tolist()
for length in lengths:  # until every pool has its size
    call(length)
before = resident()
for length in lengths * 10:
    call(length)
print(resident() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_memory_does_not_grow_over_ten_thousand_calls():
    """A kilobyte lost in each call would be 10 MB; a huge page has 2 MB."""
    shown = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True).stdout
    assert int(shown) < 5 * 2**20
