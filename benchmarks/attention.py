"""How long is split-triangle attention beside what one would call instead? Ratios to PyTorch's own, in one run.

    python benchmarks/attention.py --output out/attention.json

Peers: SDPA full (the same products, but no rotation and no split triangle), SDPA causal (half of them), and the eager
way of the paper's code, two dense S x S score matrices. Repetitions are interleaved; medians are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
from tqdm import tqdm

from bico_ext import environment, reference, split_triangle_attention
from bico_ext.files import write_json

SHAPES = [(1, 8, 2048, 128), (1, 8, 2048, 64), (1, 8, 512, 64), (1, 2, 8192, 128), (32, 4, 28, 32)]  # B, H, S, D
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def contestants(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """By name, a call that returns an attention output which requires gradients."""
    generator = torch.Generator().manual_seed(0)
    batch, heads, length, head_dim = shape
    q, k, v = (
        torch.randn(batch, length, heads, head_dim, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    frequency = 10_000 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)[None]
    cos, sin = angle.cos(), angle.sin()
    causal = torch.ones(batch, length, dtype=torch.int32)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: split_triangle_attention(q, k, v, cos, sin),
        "ours, causal span ids": lambda: split_triangle_attention(q, k, v, cos, sin, span_ids=causal),
        "SDPA full": lambda: sdpa(q, k, v),
        "SDPA causal": lambda: sdpa(q, k, v, is_causal=True),
    }
    if batch * heads * length**2 <= 2**25:  # 128 MiB for each score matrix in float32
        calls["eager, two matrices"] = lambda: reference.split_triangle_attention(q, k, v, cos, sin)
    return calls


def measure(calls: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of forward and forward + backward, the calls taking turns."""
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "forward + backward": []} for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            with torch.no_grad():
                call()
            forward = time.perf_counter()
            call().sum().backward()
            both = time.perf_counter()
            if repetition > 0:  # the first warms up
                times[name]["forward"].append((forward - started) * 1e3)
                times[name]["forward + backward"].append((both - forward) * 1e3)
    return {name: {kind: statistics.median(ms) for kind, ms in kinds.items()} for name, kinds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--output", help="JSON file for the medians and the machine")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for shape in tqdm(SHAPES):
        for dtype_name, dtype in DTYPES.items():
            medians = measure(contestants(shape, dtype), options.repetitions)
            rows.append({"shape": shape, "dtype": dtype_name, "milliseconds": medians})
    print("| B, H, S, D | dtype | call | forward ms | / SDPA full | forward + backward ms | / SDPA full |")
    print("|---" * 7 + "|")
    for row in rows:
        medians = row["milliseconds"]
        for name, kinds in medians.items():
            cells = [f"{ms:.2f} | {ms / medians['SDPA full'][kind]:.2f}" for kind, ms in kinds.items()]
            print(f"| {', '.join(map(str, row['shape']))} | {row['dtype']} | {name} | {' | '.join(cells)} |")
    if options.output:
        write_json(options.output, {"environment": environment.describe(), "rows": rows})


if __name__ == "__main__":
    main()
