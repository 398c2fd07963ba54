"""How the GPU benchmark measures a case: ways that take turns, timed by marks on the device, and their peak memory."""

import gc
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import gpu_cases
import torch
from gpu_cases import DTYPE, OURS, PASS_FLOPS, SAME_FUNCTION, WAYS, GpuCase
from torch import Tensor

PRODUCT, PRODUCT_SIZE = "torch.matmul", 8192
PAUSE_CYCLES = 2_000_000  # about 1 ms, in which the host queues a call
LEAST_ROUNDS = 3  # run even where the time of a case is over
Work = Callable[[Callable[[], None]], Any]  # calls its argument before, between and after what is timed


class Meter(Protocol):
    """What the benchmark asks of a device; the tests have one for the CPU."""

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
        """Between each mark and the next, once the device has reached the last."""
        marks[-1].synchronize()
        return [start.elapsed_time(end) for start, end in itertools.pairwise(marks)]

    def extra_bytes(self, call: Callable[[], list[Tensor]]) -> tuple[int, list[Tensor]]:
        """The peak of the call beyond what it returns, and what it returns."""
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
        """Give back what failed calls or the case before have left."""
        gc.collect()
        torch.cuda.empty_cache()


def measure_case(case: GpuCase, meter: Meter, repetitions: int, most: float) -> dict[str, Any]:
    """Every sample of every way that runs, and why the others do not, ready for JSON."""
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
        works = {PRODUCT: matrix_product(meter.device), **first_calls(case, meter, result)}
        laps, failures = take_turns(works, meter, repetitions, most)
    except Exception as error:  # a kernel's fault spoils what follows; what was recorded before is worth having
        result["left_out"]["the whole case"] = sentence(error)
        return result
    result["matrix_product_ms"] = [ms for (ms,) in laps.pop(PRODUCT, [])]
    for index, name in enumerate(PASS_FLOPS):
        result["milliseconds"][name] = {way: [ms[index] for ms in rounds] for way, rounds in laps.items()}
    result["left_out"] |= failures
    return result


def first_calls(case: GpuCase, meter: Meter, result: dict[str, Any]) -> dict[str, Work]:
    """The ways that run, after two calls of each. Peaks, differences and why others do not run go into the result."""
    operands, grad_out = gpu_cases.inputs(case, meter.device)
    works: dict[str, Work] = {}
    ours: list[Tensor] = []
    for way in WAYS[case.mask]:
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


def take_turns(
    works: dict[str, Work], meter: Meter, repetitions: int, most: float
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Milliseconds of every lap of each work, round by round, and the error of each work that raised.

    One round before those that count warms up. No round starts after `most` seconds once LEAST_ROUNDS have been run.
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
        for way, marks in reached.items():  # waited for only now, so that the host stays ahead of the device
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
    """The largest relative difference of a tensor; None if one is not finite."""
    relative = [((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in zip(theirs, ours, strict=True)]
    return max(relative) if all(map(math.isfinite, relative)) else None


def sentence(error: Exception) -> str:
    """An error in one line of at most 400 characters."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 400 else f"{text[:399]}…"
