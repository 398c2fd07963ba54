"""Measuring: interleaved calls, quartiles, and the peak memory of a call in a fresh process."""

import ctypes
import itertools
import math
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
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
    """Return the milliseconds of each call in each round.

    Every round runs all calls, A, B, C, A, B, C, ..., so that a slow phase of the machine affects all of them.

    Args:
        calls: the calls to time. The result of a call is freed after its time is taken.
        repetitions: the number of rounds that count. One more round before them warms up.
        between: a function that runs after each call and is not timed.
        least: the seconds that the rounds should fill. Short calls get more rounds than `repetitions`.
        most: the seconds after which no further round starts. There is always one round that counts.
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
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return low.item(), median.item(), high.item()


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Return ours / theirs for each round.

    Both calls of a round meet the same state of the machine, so the ratios vary less than the times.
    """
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(samples: list[float], digits: int) -> str:
    """Return a table cell: median [lower quartile, upper quartile]."""
    low, median, high = quartiles(samples)
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def origin(environment: Mapping[str, Any]) -> str:
    """Return the line above a table that says where, with what and when it was measured: today."""
    commit, *dirty = (environment["commit"] or "unknown").split("-")
    threads = f"{environment['threads']} thread{'' if environment['threads'] == 1 else 's'}"
    return (
        f"{environment['cpu']}, {threads}, {environment['kernels']} kernels, torch "
        f"{environment['torch']}, commit {'-'.join([commit[:7], *dirty])}, {date.today()}\n\n"
    )


def matrix_product(dtype: torch.dtype, repetitions: int) -> list[float]:
    """Return the milliseconds of torch.matmul on square matrices: the practical peak, not that of the machine."""
    a, b = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()
    return interleaved({"product": lambda: a @ b}, repetitions)["product"]


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run the function in a fresh process and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def peak_memory(call: Callable[[], Any]) -> tuple[int, Any]:
    """Return by how many bytes the call raised the resident memory of this process at its peak, and its result.

    Linux only; precise to about a MiB. Memory that an earlier call has freed but the process has kept does not count,
    so use `in_fresh_process`.
    """
    ctypes.CDLL(None).malloc_trim(0)  # returns to the system what building the inputs has freed
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
    before = _status("VmRSS")
    result = call()
    return max(_status("VmHWM") - before, 0), result


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")
