"""What does a whole optimizer step cost with split-triangle attention, compared with the stock step?

    python benchmarks/train_step.py --output-dir out/benchmark-train
    python benchmarks/train_step.py --model PATH --dtype bfloat16 --lengths 28 --tokens 896

The model is a random Llama with 25 million parameters; its vocabulary is small, so that layers and attention dominate.
--model takes a real one instead. A step is forward, loss, backward and fused AdamW. There are six steps:

* NTP, SDPA: next-token prediction with transformers' SDPA attention, the stock step;
* NTP, ours: the same with split-triangle attention (all span ids 1);
* BICO, ours: BICO's mask denoising with split-triangle attention;
* infill, ours: the same for the infill objective;
* BICO, two matrices: as BICO, ours, with the paper's two dense score matrices instead of the op;
* BICO, packing: as BICO, ours, with the sequences of the padded layout packed into one row, as BicoConfig(packing=True)
  does. The packed layout lacks it, because there BICO, ours is the same.

All but the stock step compute logits only where there are labels, as BicoTrainer does.

bfloat16 is autocast over float32 weights. The steps are interleaved in one run. [a, b] are quartiles. The time of each
step is divided by that of the stock step, round by round.

All steps but BICO, packing have the same number of token positions. In the padded layout, rows have S / 2 to S tokens
and the longest has S; the stock step has an attention mask if it needs one. In the packed layout, such sequences lie in
one row. Ours tells them apart by cu_seq_lens_q, and the stock step by position_ids, which transformers turns into a
dense mask.
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cases import SEED
from measure import interleaved, origin, quartiles, ratios, spread, table
from peers import two_matrices
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bico_ext import attach, environment
from bico_ext.files import write_json, write_text
from bico_ext.objectives import registry
from bico_ext.objectives.training_sequence import labelled_only, pack, pad
from bico_ext.ops.reference import visible

MODEL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 2**15,
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
STOCK, OURS, DENSE, PACKING = "NTP, SDPA", "BICO, ours", "BICO, two matrices", "BICO, packing"
WAYS = [STOCK, "NTP, ours", OURS, "infill, ours", DENSE, PACKING]
TARGET_LENGTH, CEILING = 1024, 1.1  # the ceiling is for the ratio of "BICO, ours" to "NTP, SDPA"
SCORE_LIMIT = 4 * 2**30  # bytes; the two matrices are left out if they would take more


def sequences(length: int, places: int, packed: bool) -> list[Tensor]:
    """Return random sequences of length / 2 to length tokens that fill the token positions, padded or packed."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = torch.randint((length + 1) // 2, length + 1, (2 * places // length + 1,), generator=generator).tolist()
    if packed:
        ends = [min(end, places) for end in torch.tensor(lengths).cumsum(0).tolist()]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False) if end > start]
    else:
        lengths = [length, *lengths[1 : max(places // length, 1)]]
    return [torch.randint(1, MODEL["vocab_size"], (n,), generator=generator) for n in lengths]


def batch(way: str, tokens: list[Tensor], packed: bool) -> dict[str, Tensor]:
    """Return the model's keyword arguments for a step."""
    generator = torch.Generator().manual_seed(SEED)
    objective = registry.bind(way.split(",")[0].lower(), placeholder_id=0, special_ids=())
    rows = [objective(sequence, generator) for sequence in tokens]
    arguments = pack(rows) if packed or way == PACKING else pad(rows, pad_id=0)
    if way == STOCK:
        span_ids = arguments.pop("span_ids")
        if packed:
            del arguments["cu_seq_lens_q"]
        else:
            arguments["attention_mask"] = (span_ids >= 0).long()
    return arguments


def densely(span_ids: Tensor, offsets: Tensor | None, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Make attached models call the two matrices instead of the op, with one mask for all layers, as eager does."""
    seen = visible(span_ids)  # [B, m, n]
    if offsets is not None:
        sequence = torch.searchsorted(offsets, torch.arange(span_ids.shape[1]), right=True)
        seen &= sequence[:, None] == sequence
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    def attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # grouped-query heads
        return two_matrices(q, k, v, cos, sin, mask)

    return mock.patch("bico_ext.models.hooks.split_triangle_attention", attention)


def loss_of(model: Any, way: str, arguments: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    dense = densely(arguments["span_ids"], arguments.get("cu_seq_lens_q"), dtype) if way == DENSE else nullcontext()
    with dense, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(**arguments, use_cache=False).loss


def step(
    model: Any, optimizer: torch.optim.Optimizer, way: str, arguments: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Do one optimizer step: this is what the benchmark times."""
    loss_of(model, way, arguments, dtype).backward()
    optimizer.step()
    optimizer.zero_grad()


def build(attached: bool, path: str | None = None) -> Any:
    """Return the model at a path, or the random one; its attention is SDPA, the default."""
    torch.manual_seed(SEED)
    model: Any = AutoModelForCausalLM.from_pretrained(path) if path else LlamaForCausalLM(LlamaConfig(**MODEL))
    return attach(model.train()) if attached else model.train()


def left_out(way: str, tokens: list[Tensor], packed: bool, dtype: str, config: Any) -> str | None:
    """Return why a step is not timed; None if it is timed."""
    if way != DENSE:
        return None
    rows, length = (1, sum(map(len, tokens))) if packed else (len(tokens), max(map(len, tokens)))
    # Bytes per score that each layer keeps for the backward: the softmax, and its cast in bfloat16.
    kept = 6 if dtype == "bfloat16" else 4
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    needed = rows * heads * length**2 * (kept * layers + 15)  # 15: as in cases.SCORE_BYTES
    return f"would take about {needed / 2**30:.0f} GiB" if needed > SCORE_LIMIT else None


def measure_steps(
    dtype: str, length: int, places: int, packed: bool, repetitions: int, path: str | None = None
) -> dict[str, Any]:
    """Return all samples of all steps at one length, ready for JSON."""
    tokens = sequences(length, places, packed)
    trained = {attached: build(attached, path) for attached in (False, True)}
    optimizers = {
        attached: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for attached, model in trained.items()
    }
    excuses, steps = {}, {}
    for way in WAYS[:-1] if packed else WAYS:
        attached = way != STOCK
        if excuse := left_out(way, tokens, packed, dtype, trained[attached].config):
            excuses[way] = excuse
        else:
            arguments = batch(way, tokens, packed)
            if attached:
                arguments = labelled_only(arguments)
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
    """Return the tables, and the list of what they leave out."""
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
    parser.add_argument("--model", metavar="PATH", help="folder of a Llama. Default: a random one")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: both")
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 256, 1024, 4096], metavar="S")
    parser.add_argument("--tokens", type=int, default=4096, help="token positions of a step. Default: 4096")
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
        measure_steps(dtype, length, options.tokens, packed, options.repetitions, options.model)
        for dtype, length, packed in tqdm(places)
    ]
    machine = environment.describe()
    text = origin(machine) + report(results)
    print(text)
    if options.output_dir:
        model = options.model or MODEL
        record = {"environment": machine, "seed": SEED, "model": model, "steps": results}
        write_json(options.output_dir / "train_step.json", record)
        write_text(options.output_dir / "train_step.md", text)


if __name__ == "__main__":
    main()
