"""What does a training step cost with split-triangle attention? A whole optimizer step, beside the stock one.

    python benchmarks/train_step.py --output-dir out/benchmark-train

A random Llama (25 million parameters; a small vocabulary, so that layers and attention dominate) takes forward, loss,
backward and a fused AdamW step: next-token prediction with transformers' SDPA attention, which is what one has, and
with ours (span ids of 1); BICO's mask denoising with ours, and with the paper's two dense score matrices in the place
of the op. bfloat16 is autocast over float32 weights. Steps take turns in one run, [a, b] are quartiles, and each step
is divided, round by round, by the stock one.

Each step has the same number of token places. padded: rows of S / 2 to S tokens, the longest of them S, stock with an
attention mask where it needs one. packed: such sequences in one row, told apart by cu_seq_lens_q (ours) or by
position_ids (stock: transformers turns them into a dense mask).
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cases import SEED
from measure import interleaved, quartiles, ratios, spread, table
from peers import two_matrices
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from bico_ext import attach
from bico_ext.files import write_json, write_text
from bico_ext.objectives import registry
from bico_ext.objectives.training_sequence import pad
from bico_ext.ops.reference import visible
from bico_ext import environment

MODEL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 2**15,
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
STOCK, OURS, DENSE = "NTP, SDPA", "BICO, ours", "BICO, two matrices"
WAYS = [STOCK, "NTP, ours", OURS, DENSE]
TARGET_LENGTH, CEILING = 1024, 1.1  # of BICO, ours / NTP, SDPA
SCORE_LIMIT = 4 * 2**30  # bytes; where the two matrices would take more, they are left out


def sequences(length: int, places: int, packed: bool) -> list[Tensor]:
    """Random token sequences of length / 2 to length tokens that fill the places, padded or packed."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = torch.randint((length + 1) // 2, length + 1, (2 * places // length + 1,), generator=generator).tolist()
    if packed:
        ends = [min(end, places) for end in torch.tensor(lengths).cumsum(0).tolist()]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False) if end > start]
    else:
        lengths = [length, *lengths[1 : max(places // length, 1)]]
    return [torch.randint(1, MODEL["vocab_size"], (n,), generator=generator) for n in lengths]


def batch(way: str, tokens: list[Tensor], packed: bool) -> dict[str, Tensor]:
    """The model's keyword arguments."""
    generator = torch.Generator().manual_seed(SEED)
    objective = registry.bind("ntp" if way.startswith("NTP") else "bico", placeholder_id=0, special_ids=())
    rows = [objective(sequence, generator) for sequence in tokens]
    if packed:
        lengths = [len(sequence) for sequence in tokens]
        arguments = {
            name: torch.cat([getattr(row, name) for row in rows])[None] for name in ("input_ids", "labels", "span_ids")
        }
        arguments["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
        arguments["cu_seq_lens_q"] = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    else:
        arguments = pad(rows, pad_id=0)
    if way == STOCK:
        span_ids = arguments.pop("span_ids")
        if packed:
            del arguments["cu_seq_lens_q"]
        else:
            arguments["attention_mask"] = (span_ids >= 0).long()
    return arguments


def densely(span_ids: Tensor, offsets: Tensor | None, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """An attached model calls the two matrices in the place of the op, with one mask for all layers, as eager does."""
    seen = visible(span_ids)  # [B, m, n]
    if offsets is not None:
        sequence = torch.searchsorted(offsets, torch.arange(span_ids.shape[1]), right=True)
        seen &= sequence[:, None] == sequence
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    def attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Tensor:
        return two_matrices(q, k, v, cos, sin, mask)

    return mock.patch("bico_ext.models.attach.split_triangle_attention", attention)


def loss_of(model: Any, way: str, arguments: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    dense = densely(arguments["span_ids"], arguments.get("cu_seq_lens_q"), dtype) if way == DENSE else nullcontext()
    with dense, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(**arguments, use_cache=False).loss


def step(
    model: Any, optimizer: torch.optim.Optimizer, way: str, arguments: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """What is timed."""
    loss_of(model, way, arguments, dtype).backward()
    optimizer.step()
    optimizer.zero_grad()


def build(attached: bool) -> Any:
    torch.manual_seed(SEED)
    model: Any = LlamaForCausalLM(LlamaConfig(**MODEL)).train()  # whose attention is SDPA, the default
    return attach(model) if attached else model


def left_out(way: str, tokens: list[Tensor], packed: bool, dtype: str) -> str | None:
    """Why a step is not timed; None if it is."""
    if way != DENSE:
        return None
    rows, length = (1, sum(map(len, tokens))) if packed else (len(tokens), max(map(len, tokens)))
    kept = 6 if dtype == "bfloat16" else 4  # bytes of a score in each layer until the backward: the softmax, its cast
    layers = MODEL["num_hidden_layers"]
    needed = rows * MODEL["num_attention_heads"] * length**2 * (kept * layers + 15)  # 15: as in cases.SCORE_BYTES
    return f"would take about {needed / 2**30:.0f} GiB" if needed > SCORE_LIMIT else None


def measure_steps(dtype: str, length: int, places: int, packed: bool, repetitions: int) -> dict[str, Any]:
    """Every sample of every step at one length, ready for JSON."""
    tokens = sequences(length, places, packed)
    trained = {attached: build(attached) for attached in (False, True)}
    optimizers = {
        attached: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for attached, model in trained.items()
    }
    excuses, steps = {}, {}
    for way in WAYS:
        attached = way != STOCK
        if excuse := left_out(way, tokens, packed, dtype):
            excuses[way] = excuse
        else:
            arguments = batch(way, tokens, packed)
            steps[way] = partial(step, trained[attached], optimizers[attached], way, arguments, DTYPES[dtype])
    return {
        "dtype": dtype,
        "layout": "packed" if packed else "padded",
        "length": length,
        "tokens": sum(map(len, tokens)),
        "left_out": excuses,
        "milliseconds": interleaved(steps, repetitions),
    }


def report(results: list[dict[str, Any]]) -> str:
    """The tables, and what was left out of them."""
    rows: list[tuple[str, ...]] = []
    targets: list[tuple[str, ...]] = []
    notes = ""
    for result in results:
        place = (result["dtype"], result["layout"], str(result["length"]))
        stock = result["milliseconds"][STOCK]
        for way, ms in result["milliseconds"].items():
            rate = result["tokens"] / quartiles(ms)[1] * 1e3
            ratio = "" if way == STOCK else spread(ratios(ms, stock), 2)
            rows.append((*place, way, spread(ms, 0), f"{rate:.0f}", ratio))
        if result["length"] == TARGET_LENGTH:
            between = ratios(result["milliseconds"][OURS], stock)
            met = "met" if quartiles(between)[1] <= CEILING else "missed"
            targets.append((*place, spread(between, 2), f"{CEILING:.2f}", met))
        notes += "".join(f"Left out: {way}, {', '.join(place)}: {why}.\n" for way, why in result["left_out"].items())
    text = table(("dtype", "layout", "S", "step", "ms", "tokens/s", f"/ {STOCK}"), rows)
    if targets:
        text += "\n" + table(("dtype", "layout", "S", f"{OURS} / {STOCK}", "ceiling", ""), targets)
    return text + (f"\n{notes}" if notes else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: both")
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 256, 1024, 4096], metavar="S")
    parser.add_argument("--tokens", type=int, default=4096, help="token places of a step. Default: 4096")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds. Default: 5")
    parser.add_argument("--output-dir", type=Path, help="folder for train_step.json and train_step.md")
    options = parser.parse_args(arguments)
    if options.repetitions < 1 or not 2 <= min(options.lengths) <= max(options.lengths) <= options.tokens:
        parser.error("--repetitions must be at least 1, and each of --lengths from 2 to --tokens")
    print(f"seed {SEED}, {torch.get_num_threads()} threads")
    places = [
        (dtype, length, packed) for dtype in options.dtype for packed in (False, True) for length in options.lengths
    ]
    results = [
        measure_steps(dtype, length, options.tokens, packed, options.repetitions)
        for dtype, length, packed in tqdm(places)
    ]
    text = report(results)
    print(text)
    if options.output_dir:
        record = {"environment": environment.describe(), "seed": SEED, "model": MODEL, "steps": results}
        write_json(options.output_dir / "train_step.json", record)
        write_text(options.output_dir / "train_step.md", text)


if __name__ == "__main__":
    main()
