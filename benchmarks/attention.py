"""How much time and memory does split-triangle attention take on a CPU, compared with the alternatives?

    python benchmarks/attention.py --output-dir out/benchmark

The alternatives to ours are

* SDPA full: PyTorch's SDPA without a mask, which computes the same products without rotation and split triangle;
* SDPA causal: the same with a causal mask, so half of the products;
* two matrices: the paper's two dense score matrices, written as transformers' eager attention is;
* two flash calls: two causal flash calls, merged by log-sum-exp;
* portable: our op on its portable backend, in plain torch.

All calls are interleaved in one run. TFLOP/s count 4 B H S^2 D operations for a forward, 2.5 times that for a backward,
half of it for causal attention, and nothing for the rotation. "of matmul" compares this rate with that of torch.matmul
on two 2048 x 2048 matrices, measured before each case. [a, b] are quartiles. Ratios are computed round by round. Extra
memory is the peak of forward + backward beyond inputs and outputs, measured in a fresh process for each call.

--instruction-sets times ours with the kernels of each instruction set of this CPU, each in a process of its own, and
compares them with those that run by default. csrc/cpu/isa/isa.cpp chooses by such tables.

Each named case has a ceiling for the ratio of ours to its first peer. The report tells whether it was met; the exit
status does not depend on it.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cases import (
    CASES,
    PASS_FLOPS,
    PASSES,
    SEED,
    Call,
    Case,
    extra_memory,
    forward_flops,
    left_out,
    prepare,
    sweep_case,
)
from matplotlib.figure import Figure
from measure import (
    PRODUCT_FLOPS,
    in_fresh_process,
    interleaved,
    matrix_product,
    origin,
    quartiles,
    ratios,
    spread,
    table,
)
from tqdm import tqdm

from bico_ext.files import atomic_write, write_json, write_text

PRODUCT = "torch.matmul of 2048 x 2048"
SWEEP_LENGTHS = [2**power for power in range(7, 16)]
LEAST_SECONDS = 3.0  # of all rounds of a case, so that short disturbances do not dominate calls of a millisecond
MOST_SWEEP_SECONDS = 30.0  # no further round of a sweep length starts after this time


def measure_case(case: Case, repetitions: int, passes: list[str], most: float = math.inf) -> dict[str, Any]:
    """Return all samples of all ways to compute the case, ready for JSON."""
    excuses = {way: excuse for way in case.peers if (excuse := left_out(case, way))}
    ways = [way for way in ("ours", *case.peers) if way not in excuses]
    return {
        "case": asdict(case),
        "left_out": list(excuses.values()),
        "matrix_product_ms": matrix_product(getattr(torch, case.dtype), repetitions),
        "milliseconds": time_case(case, ways, repetitions, passes, most),
        "forward_flops": {way: forward_flops(case, way) for way in ways},
        "extra_bytes": {way: in_fresh_process(extra_memory, case, way) for way in ways},
    }


def time_case(
    case: Case, ways: list[str], repetitions: int, passes: list[str], most: float
) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds by pass and way; the calls are interleaved."""
    calls = {way: prepare(case, way) for way in ways}

    def clear() -> None:
        for call in calls.values():
            call.clear()

    timed = {(name, way): partial(PASSES[name], calls[way]) for name in passes for way in ways}
    samples = interleaved(timed, repetitions, clear, LEAST_SECONDS, most)
    return {name: {way: samples[name, way] for way in ways} for name in passes}


def time_instruction_sets(chosen: list[Case], sets: list[str], repetitions: int) -> Iterator[dict[str, Any]]:
    """Yield the milliseconds of ours by pass and instruction set for each case; the sets are interleaved."""
    with ExitStack() as stack:
        processes = {}
        for isa in sets:
            pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=os.putenv, initargs=("BICO_ISA", isa))
            processes[isa] = stack.enter_context(pool)
        for case in chosen:
            samples: dict[str, dict[str, list[float]]] = {name: {isa: [] for isa in sets} for name in PASSES}
            for _ in range(repetitions):
                for name in PASSES:
                    for isa in sets:
                        samples[name][isa].append(processes[isa].submit(_third_call, isa, case.name, name).result())
            yield {"case": asdict(case), "milliseconds": samples}


def _third_call(isa: str, case_name: str, pass_name: str) -> float:
    """Return the milliseconds of the third of three calls with these kernels; before them, this process was idle."""
    from bico_ext._C import chosen_instruction_set

    if (runs := chosen_instruction_set()) != isa:
        raise RuntimeError(f"the kernels of {isa} were to be timed, but those of {runs} run")
    call = _ours(case_name)
    for _ in range(3):
        call.clear()
        started = time.perf_counter()
        PASSES[pass_name](call)
        elapsed = time.perf_counter() - started
    return elapsed * 1e3


@cache
def _ours(case_name: str) -> Call:
    return prepare(next(case for case in CASES if case.name == case_name), "ours")


def instruction_set_report(results: list[dict[str, Any]], default: str) -> str:
    """Return the table of instruction sets."""
    rows: list[tuple[str, ...]] = [
        (result["case"]["name"], name, isa, spread(ms, 2), spread(ratios(ms, samples[default]), 2))
        for result in results
        for name, samples in result["milliseconds"].items()
        for isa, ms in samples.items()
    ]
    return table(("case", "pass", "kernels", "ms", f"/ {default}"), rows)


def measured_rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the table of times."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        case, product_ms = result["case"]["name"], result["matrix_product_ms"]
        product = PRODUCT_FLOPS / (quartiles(product_ms)[1] * 1e9)
        rows.append((case, "", PRODUCT, spread(product_ms, 2), f"{product:.3f}", "100%", "", ""))
        for name, samples in result["milliseconds"].items():
            for way, ms in samples.items():
                rate = result["forward_flops"][way] * PASS_FLOPS[name] / (quartiles(ms)[1] * 1e9)
                ratio = "" if way == "ours" else spread(ratios(samples["ours"], ms), 2)
                extra = f"{result['extra_bytes'][way] / 2**20:.1f}" if name == "forward + backward" else ""
                rows.append((case, name, way, spread(ms, 2), f"{rate:.3f}", f"{rate / product:.0%}", ratio, extra))
    return rows


def target_rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the table of ceilings."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        case = result["case"]
        for name, ceiling in case["ceilings"].items():
            samples, peer = result["milliseconds"][name], case["peers"][0]
            between = ratios(samples["ours"], samples[peer])
            met = "met" if quartiles(between)[1] <= ceiling else "missed"
            rows.append((case["name"], name, peer, spread(between, 2), f"{ceiling:.2f}", met))
    return rows


def report(results: list[dict[str, Any]]) -> str:
    """Return the tables, and the list of what they leave out."""
    columns = ("case", "pass", "call", "ms", "TFLOP/s", "of matmul", "ours / it", "extra MiB")
    parts = [table(columns, measured_rows(results))]
    targets = target_rows(results)
    if targets:
        parts.append(table(("case", "pass", "peer", "ours / peer", "ceiling", ""), targets))
    parts += ["".join(f"Left out: {excuse}.\n" for result in results for excuse in result["left_out"])]
    return "\n".join(part for part in parts if part)


def draw(path: Path, results: list[dict[str, Any]]) -> None:
    """Plot time and extra memory against the sequence length, on logarithmic axes."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    case = results[0]["case"]
    for way in ("ours", *case["peers"]):
        there = [result for result in results if way in result["extra_bytes"]]
        lengths = [result["case"]["S"] for result in there]
        ms = [quartiles(result["milliseconds"]["forward + backward"][way])[1] for result in there]
        mebibytes = [result["extra_bytes"][way] / 2**20 for result in there]
        style: dict[str, Any] = {
            "marker": "o",
            "markersize": 3,
            "linewidth": 2.5 if way == "ours" else 1.2,
            "label": way,
        }
        time_axes.plot(lengths, ms, **style)
        memory_axes.plot(lengths, mebibytes, **style)
    time_axes.set_ylabel("milliseconds, forward + backward")
    memory_axes.set_ylabel("peak MiB beyond inputs and outputs")
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(f"sequence length ({case['dtype']}, {case['B']} x {case['H']} heads of {case['D']})")
        axes.grid(alpha=0.3)
    time_axes.legend()
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument(
        "--cases", nargs="*", default=names, choices=names, metavar="NAME",
        help=f"named cases to run, any of {', '.join(names)}, or none. Default: all",
    )  # fmt: skip
    parser.add_argument(
        "--instruction-sets", action="store_true", help="time the kernels of each instruction set, and nothing else"
    )
    parser.add_argument("--sweep", action="store_true", help="also plot time and memory for S = 128 to 32768")
    parser.add_argument(
        "--repetitions",
        type=int,
        default=7,
        help="rounds; more if they take under 3 seconds, fewer for the long lengths of a sweep. Default: 7",
    )
    parser.add_argument(
        "--output-dir", type=Path, help="folder for attention.json, table.md and, after a sweep, attention.png"
    )
    options = parser.parse_args(arguments)
    if options.repetitions < 1:
        parser.error(f"--repetitions must be at least 1, got {options.repetitions}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    from bico_ext import environment  # imports transformers, which the processes that measure memory do not need

    print(f"seed {SEED}, {torch.get_num_threads()} threads")
    record: dict[str, Any] = {"environment": environment.describe(), "seed": SEED, "cases": [], "sweep": []}
    chosen = [case for case in CASES if case.name in options.cases]
    if options.instruction_sets:
        machine = record["environment"]
        timed = time_instruction_sets(chosen, machine["instruction_sets"], options.repetitions)
        record["cases"] += tqdm(timed, desc="cases", total=len(chosen))
        text = origin(machine) + instruction_set_report(record["cases"], machine["kernels"])
        print(text)
        if options.output_dir:
            write_json(options.output_dir / "instruction_sets.json", record)
            write_text(options.output_dir / "instruction_sets.md", text)
        return
    for case in tqdm(chosen, desc="cases", disable=not chosen):
        record["cases"].append(measure_case(case, options.repetitions, list(PASSES)))
    for length in tqdm(SWEEP_LENGTHS if options.sweep else [], desc="sweep", disable=not options.sweep):
        case = sweep_case(length)
        record["sweep"].append(measure_case(case, options.repetitions, ["forward + backward"], MOST_SWEEP_SECONDS))
    tables = "\n".join(report(record[part]) for part in ("cases", "sweep") if record[part])
    text = origin(record["environment"]) + tables
    print(text)
    if options.output_dir:
        write_json(options.output_dir / "attention.json", record)
        write_text(options.output_dir / "table.md", text)
        if record["sweep"]:
            draw(options.output_dir / "attention.png", record["sweep"])


if __name__ == "__main__":
    main()
