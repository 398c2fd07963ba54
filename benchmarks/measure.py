"""How the benchmarks measure: calls that take turns, quartiles, and peak memory in a process of its own."""

import ctypes
import itertools
import math
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)

PRODUCT_SIZE = 2048
PRODUCT_FLOPS = 2 * PRODUCT_SIZE**3


def interleaved(
    calls: Mapping[Key, Callable[[], Any]],
    repetitions: int,
    between: Callable[[], None] = lambda: None,
    least: float = 0.0,
    most: float = math.inf,
) -> dict[Key, list[float]]:
    """Milliseconds of each call in each round. A, B, C, A, B, C, ...: a slow spell of the machine meets all of them.

    Args:
        calls: what to time; what a call returns is freed after its clock has stopped.
        repetitions: rounds that count; one before them warms up.
        between: run after each call, not timed.
        least: seconds that the rounds shall fill; short calls take more of them than `repetitions`.
        most: seconds after which no further round starts; the first always counts.
    """
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    began = time.perf_counter()
    for repetition in itertools.count():
        spent = time.perf_counter() - began
        if (repetition > repetitions and spent > least) or (repetition > 1 and spent > most):
            break
        for key, call in calls.items():
            started = time.perf_counter()
            result = call()
            elapsed = time.perf_counter() - started
            del result
            between()
            if repetition > 0:
                samples[key].append(elapsed * 1e3)
    return samples


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    low, median, high = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return low.item(), median.item(), high.item()


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Ours / theirs, round by round: both of a round met the same machine, so these spread less than the times."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(samples: list[float], digits: int) -> str:
    """The cell of a table: median [quartiles]."""
    low, median, high = quartiles(samples)
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def matrix_product(dtype: torch.dtype, repetitions: int) -> list[float]:
    """Milliseconds of torch.matmul on square matrices: not the machine's peak, but what a library gets from it."""
    a, b = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()
    return interleaved({"product": lambda: a @ b}, repetitions)["product"]


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a process that has run nothing before it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def peak_memory(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes by which the resident memory of this process grew at most while the call ran (Linux), and its result.

    Good to about a MiB. Memory that an earlier call has left to the process for reuse does not count, hence
    `in_fresh_process`.
    """
    ctypes.CDLL(None).malloc_trim(0)  # give back what building the inputs has freed
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
    before = _status("VmRSS")
    result = call()
    return max(_status("VmHWM") - before, 0), result


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")
