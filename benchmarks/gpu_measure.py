"""Measuring a case of the GPU benchmark: interleaved calls, timed by marks on the device, and their peak memory."""

import gc
import itertools
import math
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import gpu_cases
import torch
from gpu_cases import DTYPE, OTHER_BACKENDS, OURS, PASS_FLOPS, SAME_FUNCTION, WAYS, GpuCase
from torch import Tensor

PRODUCT, PRODUCT_SIZE = "torch.matmul", 8192
PAUSE_CYCLES = 2_000_000  # about 1 ms, in which the host queues a call
LEAST_ROUNDS = 3  # these run even if the time of the case is over
Work = Callable[[Callable[[], None]], Any]  # calls its argument before, between and after the timed passes


class Meter(Protocol):
    """What the benchmark needs from a device; the tests have one for the CPU."""

    device: str

    def pause(self) -> None: ...
    def mark(self) -> Any: ...
    def milliseconds(self, marks: list[Any]) -> list[float]: ...
    def extra_bytes(self, call: Callable[[], list[Tensor]]) -> tuple[int, list[Tensor]]: ...
    def free_bytes(self) -> int: ...
    def release(self) -> None: ...


class CudaMeter:
    """Events on the current stream, and the peak of torch's allocator."""

    device = "cuda"

    def pause(self) -> None:
        torch.cuda._sleep(PAUSE_CYCLES)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, marks: list[torch.cuda.Event]) -> list[float]:
        """Return the time between each mark and the next, after the device has reached the last."""
        marks[-1].synchronize()
        return [start.elapsed_time(end) for start, end in itertools.pairwise(marks)]

    def extra_bytes(self, call: Callable[[], list[Tensor]]) -> tuple[int, list[Tensor]]:
        """Return the peak of the call beyond its results, and its results."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = call()
        torch.cuda.synchronize()  # an error in its kernels is raised here
        grown = torch.cuda.max_memory_allocated() - before
        return max(grown - sum(x.nbytes for x in results), 0), results

    def free_bytes(self) -> int:
        self.release()
        return torch.cuda.mem_get_info()[0]

    def release(self) -> None:
        """Free the memory that failed calls or the previous case have left."""
        gc.collect()
        torch.cuda.empty_cache()


def measure_case(
    case: GpuCase, meter: Meter, repetitions: int, most: float, backends: Collection[str] = ()
) -> dict[str, Any]:
    """Return all samples of the ways that run, and why the others do not, ready for JSON.

    Args:
        backends: those of `OTHER_BACKENDS` that are measured, too.
    """
    result: dict[str, Any] = {
        "case": {"name": case.name, **asdict(case)},
        "forward_flops": gpu_cases.forward_flops(case),
        "milliseconds": {name: {} for name in PASS_FLOPS},
        "matrix_product_ms": [],
        "extra_bytes": {},
        "off_ours": {},
        "left_out": {},
    }
    try:
        meter.release()
        works = {PRODUCT: matrix_product(meter.device), **first_calls(case, meter, result, backends)}
        laps, failures = alternate(works, meter, repetitions, most)
    except Exception as error:  # after a fault in a kernel nothing else works; what is already recorded is kept
        result["left_out"]["the whole case"] = sentence(error)
        return result
    result["matrix_product_ms"] = [ms for (ms,) in laps.pop(PRODUCT, [])]
    for index, name in enumerate(PASS_FLOPS):
        result["milliseconds"][name] = {way: [ms[index] for ms in rounds] for way, rounds in laps.items()}
    result["left_out"] |= failures
    return result


def first_calls(case: GpuCase, meter: Meter, result: dict[str, Any], backends: Collection[str]) -> dict[str, Work]:
    """Call each way twice and return those that run.

    The peaks, the differences from ours and the reasons why the other ways do not run are stored in the result.
    """
    operands, grad_out = gpu_cases.inputs(case, meter.device)
    works: dict[str, Work] = {}
    ours: list[Tensor] = []
    for way in (way for way in WAYS[case.mask] if way in backends or way not in OTHER_BACKENDS):
        if excuse := gpu_cases.left_out(case, way, meter.free_bytes):
            result["left_out"][way] = excuse
            continue
        try:
            work = both_passes(gpu_cases.attention(case, way, meter.device), operands, grad_out)
            work(lambda: None)  # compiles and loads code
            result["extra_bytes"][way], tensors = meter.extra_bytes(partial(work, lambda: None))
            if way in SAME_FUNCTION and ours:
                result["off_ours"][way] = difference(tensors, ours)
        except Exception as error:
            result["left_out"][way] = sentence(error)
        else:
            works[way] = work
            ours = tensors if way == OURS else ours
        if way in result["left_out"]:
            meter.release()
    return works


def both_passes(attention: Callable[..., Tensor], operands: list[Tensor], grad_out: Tensor) -> Work:
    def work(mark: Callable[[], None]) -> list[Tensor]:
        mark()
        out = attention(*operands)
        mark()
        grads = torch.autograd.grad(out, operands, grad_out)
        mark()
        return [out.detach(), *grads]

    return work


def matrix_product(device: str) -> Work:
    generator = torch.Generator(device).manual_seed(gpu_cases.SEED)
    a, b = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE, generator=generator, device=device).to(DTYPE).unbind()

    def work(mark: Callable[[], None]) -> Tensor:
        mark()
        product = a @ b
        mark()
        return product

    return work


def alternate(
    works: dict[str, Work], meter: Meter, repetitions: int, most: float
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Return the milliseconds of every lap of each work, round by round, and the errors of the works that failed.

    One more round, before those that count, warms up. After LEAST_ROUNDS, no round starts later than `most` seconds.
    """
    samples: dict[str, list[list[float]]] = {way: [] for way in works}
    failures: dict[str, str] = {}
    began = time.perf_counter()
    for repetition in range(repetitions + 1):
        if repetition > LEAST_ROUNDS and time.perf_counter() - began > most:
            break
        reached: dict[str, list[Any]] = {}
        for way in list(samples):
            try:
                reached[way] = marks_of(works[way], meter)
            except Exception as error:
                failures[way] = sentence(error)
                del samples[way]
        for way, marks in reached.items():  # the host waits only now, so that it stays ahead of the device
            laps = meter.milliseconds(marks)
            if repetition > 0:
                samples[way].append(laps)
    return samples, failures


def marks_of(work: Work, meter: Meter) -> list[Any]:
    marks: list[Any] = []
    meter.pause()
    work(lambda: marks.append(meter.mark()))
    return marks


def difference(theirs: list[Tensor], ours: list[Tensor]) -> float | None:
    """Return the largest relative difference of a tensor from ours; None if one is not finite."""
    relative = [((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in zip(theirs, ours, strict=True)]
    return max(relative) if all(map(math.isfinite, relative)) else None


def sentence(error: Exception) -> str:
    """Return the error as one line of at most 400 characters."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 400 else f"{text[:399]}…"
