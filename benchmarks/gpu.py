"""How fast is split-triangle attention on a GPU, compared with the alternatives, and how much memory does it take?

    python benchmarks/gpu.py

All calls use bfloat16, head dim 64 or 128 and S = 512 to 32768, with 16384 tokens of 2048 features per call, so that
the inputs outgrow the L2 cache. Cases named gqa are one sequence of 2048 tokens with 32 query heads and 4 key and value
heads (H: 32 / 4), which fits the cache. The calls are interleaved in one run. "ours" is the backend `compiled` of the
op. With --backends, "flex" and "portable" are its other backends: two calls of FlexAttention, whose block masks are
built before the timed calls, and plain torch. SDPA's FlashAttention and cuDNN backends and a single call of
FlexAttention compute plain full attention, without rotation and split triangle: one call cannot express a rotation that
differs between the plus and the minus frame. Two causal flash calls merged by log-sum-exp, and the paper's two dense
score matrices, compute the same function as ours. Causal attention (span ids 1) is compared with causal SDPA, and 15 %
placeholders with SDPA without and with a mask.

Each call runs forward and then backward, both recorded for autograd as in training. CUDA events before, between and
after them give the two times. The GPU waits while a call is queued, so that launch times do not count.

TFLOP/s count 4 B H S^2 D operations for a forward, with H query heads, 2.5 times that for a backward, half of it for
causal attention, and nothing for the rotation. "of matmul" compares this rate with torch.matmul on 8192 x 8192 bfloat16
matrices, timed in every round. [a, b] are quartiles. Ratios are computed round by round. Extra memory is the peak of
forward and backward beyond inputs and outputs. "off ours" is the relative difference from ours of a call that computes
the same function: the largest of out and the gradients.

With --deterministic, ours and the peers run under torch.use_deterministic_algorithms, except that new tensors are not
filled with NaN, which that mode does to help debugging.

Targets are printed as met or missed; the exit status does not depend on them. It is 2 if there is nothing to time on.
"""

import argparse
import datetime
import math
import re
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_measure
import torch
from gpu_cases import CASES, OTHER_BACKENDS, OURS, PASS_FLOPS, SEED, TARGETS, GpuCase, attention, inputs
from gpu_measure import PRODUCT, CudaMeter, Meter, both_passes, measure_case
from measure import quartiles, ratios, spread, table

from bico_ext.files import write_json, write_text
from bico_ext.ops.backends import refusal

RESULTS = Path(__file__).parent / "results"
PROFILED = 4096  # tokens of the cases that a profiler watches
CASE_SECONDS = 8.0  # no further round of a case starts after this time
GPU_FACTS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
COLUMNS = ("case", "B", "H", "pass", "call", "ms", "TFLOP/s", "of matmul", "ours / it", "extra MiB", "off ours")


def run(
    cases: list[GpuCase],
    meter: Meter,
    environment: dict[str, Any],
    base: str,
    repetitions: int,
    budget: float,
    backends: Collection[str] = (),
) -> dict[str, Any]:
    """Time the cases one by one for `budget` seconds; BASE.json and BASE.md are up to date after each."""
    deadline = time.perf_counter() + budget
    record: dict[str, Any] = {
        "environment": environment,
        "seed": SEED,
        "budget_seconds": budget,
        "cases": [],
        "targets": [],
        "not_run": [case.name for case in cases],
    }
    write(base, record)
    for case in cases:
        left = deadline - time.perf_counter()
        if left <= 0:
            break
        result = measure_case(case, meter, repetitions, min(CASE_SECONDS, left), backends)
        record["cases"].append(result)
        record["targets"] += judge(result)
        record["not_run"].remove(case.name)
        write(base, record)
        print(table(COLUMNS, measured_rows(result)), flush=True)
    return record


def judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the verdict on each target that covers the case, for each pass.

    A verdict holds the ratios, and whether their median is at most the ceiling. Both are None if ours or the peer was
    not timed.
    """
    case = result["case"]
    verdicts = []
    for target in TARGETS if case["mask"] == "full" and not case["kv_heads"] else []:
        if not target.least <= case["S"] <= target.most:
            continue
        for name, samples in result["milliseconds"].items():
            between = ratios(samples[OURS], samples[target.peer]) if {OURS, target.peer} <= samples.keys() else None
            met = None if between is None else quartiles(between)[1] <= target.ceiling
            verdicts.append({"case": case["name"], "pass": name, **asdict(target), "ratios": between, "met": met})
    return verdicts


def measured_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table of times for one case."""
    case, product_ms = result["case"], result["matrix_product_ms"]
    heads = f"{case['H']}" + (f" / {case['kv_heads']}" if case["kv_heads"] else "")
    place = (case["name"], str(case["B"]), heads)
    product = math.nan
    rows: list[tuple[str, ...]] = []
    if product_ms:
        product = 2 * gpu_measure.PRODUCT_SIZE**3 / (quartiles(product_ms)[1] * 1e9)
        rows.append((*place, "", PRODUCT, spread(product_ms, 3), f"{product:.1f}", "100%", "", "", ""))
    for name, samples in result["milliseconds"].items():
        for way, ms in samples.items():
            rate = result["forward_flops"] * PASS_FLOPS[name] / (quartiles(ms)[1] * 1e9)
            share = f"{rate / product:.0%}" if product_ms else ""
            ratio = spread(ratios(samples[OURS], ms), 2) if OURS in samples and way != OURS else ""
            extra = f"{result['extra_bytes'][way] / 2**20:.1f}" if name == "backward" else ""
            off = off_cell(result["off_ours"][way]) if name == "backward" and way in result["off_ours"] else ""
            rows.append((*place, name, way, spread(ms, 3), f"{rate:.1f}", share, ratio, extra, off))
    return rows


def off_cell(relative: float | None) -> str:
    return "not finite" if relative is None else f"{relative:.2%}"


def conclusion(record: dict[str, Any]) -> str:
    """Return the table of targets, and the list of what was not timed."""
    words = {True: "met", False: "missed", None: "not measured"}
    rows: list[tuple[str, ...]] = []
    for verdict in record["targets"]:
        ratio = "" if verdict["ratios"] is None else spread(verdict["ratios"], 2)
        ceiling = f"{verdict['ceiling']:.2f}"
        rows.append((verdict["case"], verdict["pass"], verdict["peer"], ratio, ceiling, words[verdict["met"]]))
    text = ""
    if rows:
        met = sum(verdict["met"] is True for verdict in record["targets"])
        text += table(("case", "pass", "peer", "ours / peer", "ceiling", ""), rows)
        text += f"\n{met} of {len(rows)} targets met.\n\n"
    for result in record["cases"]:
        text += "".join(f"- {result['case']['name']}, {way}: {why}\n" for way, why in result["left_out"].items())
    if record["not_run"]:
        text += f"- not run within {record['budget_seconds']:g} s: {', '.join(record['not_run'])}\n"
    return text


def report(record: dict[str, Any]) -> str:
    """Return the report in Markdown: how to read it, the machine, and the tables."""
    explanation = (__doc__ or "").split("\n\n", 2)[2]
    facts = "".join(f"- {name}: {value}\n" for name, value in record["environment"].items())
    rows = [row for result in record["cases"] for row in measured_rows(result)]
    return f"{explanation}\n{facts}\n{table(COLUMNS, rows)}\n{conclusion(record)}"


def write(base: str, record: dict[str, Any]) -> None:
    write_json(f"{base}.json", record)
    write_text(f"{base}.md", report(record))


def gpu_facts() -> dict[str, str]:
    """Return what nvidia-smi tells about the GPU, by name; empty if there is no nvidia-smi or it fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(GPU_FACTS, (value.strip() for value in told.splitlines()[0].split(",")), strict=False))


def default_base(gpu: str) -> str:
    """Return the default path without suffix, such as results/nvidia-h200-2026-11-24."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return str(RESULTS / f"{slug}-{datetime.date.today().isoformat()}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget", type=float, default=240, metavar="SECONDS",
        help="no further case starts after this time; the rest is listed as not run. Default: 240",
    )  # fmt: skip
    parser.add_argument(
        "--repetitions", type=int, default=20, help="rounds; fewer if they take over 8 seconds. Default: 20"
    )
    parser.add_argument(
        "--output", metavar="BASE", help="write BASE.json and BASE.md. Default: benchmarks/results/<gpu>-<date>"
    )
    parser.add_argument("--lengths", type=int, nargs="+", metavar="S", help="only the cases of these lengths")
    parser.add_argument(
        "--backends", nargs="+", choices=OTHER_BACKENDS, default=[],
        help="also these backends of the op; the first call of flex compiles for about 45 s",
    )  # fmt: skip
    parser.add_argument(
        "--deterministic", action="store_true",
        help="time the deterministic backward of ours and of the peers",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="only run ours once, forward and backward, for a profiler")
    options = parser.parse_args(arguments)
    if options.repetitions < 1 or options.budget <= 0:
        parser.error("--repetitions must be at least 1, and --budget more than 0 seconds")
    return options


def lacks() -> str | None:
    """Return what the benchmark needs and does not find; None if nothing is missing."""
    if not torch.cuda.is_available():
        return "an NVIDIA GPU and a torch with CUDA: torch.cuda.is_available() is false"
    if refusal("compiled", "cuda"):
        return "a bico_ext with CUDA kernels: build it with -C cmake.define.BICO_CUDA=ON"
    return None


def once(cases: list[GpuCase]) -> None:
    """Run ours forward and backward on the cases of 4096 tokens, for a profiler to watch."""
    for case in cases:
        if case.S == PROFILED and case.mask != "causal":
            work = both_passes(attention(case, OURS, "cuda"), *inputs(case, "cuda"))
            work(lambda: None)
    torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if lacking := lacks():
        print(f"benchmarks/gpu.py needs {lacking}", file=sys.stderr)
        return 2
    # A peer that has no deterministic backward warns and runs as it does without.
    torch.use_deterministic_algorithms(options.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch hides it
    if options.once:
        once(CASES)
        return 0
    from bico_ext import environment  # imports transformers, which takes seconds

    gpu = torch.cuda.get_device_name()
    facts: dict[str, Any] = {
        "cuda_runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "deterministic": options.deterministic,
    }
    base = options.output or default_base(gpu) + "-deterministic" * options.deterministic
    cases = [case for case in CASES if options.lengths is None or case.S in options.lengths]
    record = run(
        cases,
        CudaMeter(),
        environment.describe() | facts | gpu_facts(),
        base,
        options.repetitions,
        options.budget,
        options.backends,
    )
    print(f"{conclusion(record)}\n{base}: .json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
