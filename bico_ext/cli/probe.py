"""`bico probe`: measure what the flipped sines change for a frozen model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bico_ext import environment
from bico_ext.bounds import check_bounds
from bico_ext.cli.arguments import parse
from bico_ext.evaluation.fluency import general_text
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import Example
from bico_ext.files import empty_folder, write_json
from bico_ext.models import checkpoints
from bico_ext.probing.denoising import MASK_RATES
from bico_ext.probing.probe import details, probe
from bico_ext.probing.report import write_probe_report
from bico_ext.probing.texts import sequences_by_length


@dataclass
class ProbeConfig:
    """Measure what the flipped sines change for a frozen model: where it attends and how it restores hidden tokens."""

    model: str = field(
        metadata={"help": "The model, which is not trained: a path, a name of bico fetch-model or a hub name."}
    )
    output_dir: str = field(metadata={"help": "Folder for probe.json, table.md, attention.png and denoising.png."})
    data: str = field(
        default="synthetic",
        metadata={
            "help": "'synthetic', 'invented', a folder of facts, a file (.jsonl, .txt, .csv or .tsv), a hub name, or "
            "'english' for the prose of Python's documentation."
        },
    )
    texts: str = field(
        default="train",
        metadata={"help": "The part of the data to read.", "choices": ["train", "pretraining"]},
    )
    lengths: list[int] = field(
        default_factory=lambda: [32, 64, 128, 256], metadata={"help": "Lengths of the packed sequences in tokens."}
    )
    mask_rates: list[str] = field(
        default_factory=lambda: list(MASK_RATES),
        metadata={"help": "Shares of hidden tokens; 'single' hides one per text.", "choices": list(MASK_RATES)},
    )
    details: bool = field(
        default=False,
        metadata={
            "help": "Measure each head, and the flip in single layers, heads and distances (heads.png, flip.png)."
        },
    )
    detail_length: int = field(default=256, metadata={"help": "Length of the packed sequences of the details."})
    detail_samples: int = field(default=64, metadata={"help": "Largest number of sequences of the details."})
    samples: int = field(
        default=256, metadata={"help": "Largest number of texts, and of packed sequences of each length."}
    )
    attention_samples: int = field(
        default=256, metadata={"help": "Largest number of texts whose attention is measured, one at a time."}
    )
    tokens: int | None = field(
        default=None, metadata={"help": "Largest number of tokens of each length. Default: no limit."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice of texts and of the hidden tokens."})
    batch_size: int = field(default=16, metadata={"help": "Number of sequences at once."})
    dtype: str = field(
        default="float32", metadata={"help": "Type of the weights.", "choices": ["float32", "bfloat16", "float16"]}
    )
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cpu or cuda. Default: a GPU if there is one."}
    )


def run(arguments: list[str]) -> None:
    (config,) = parse("probe", [ProbeConfig], arguments)
    bounded = ("samples", "attention_samples", "tokens", "detail_samples", "detail_length", "batch_size")
    check_bounds(**{name: getattr(config, name) for name in bounded})
    for length in config.lengths:
        check_bounds(length=length)
    running = config.data == "english"
    texts: Sequence[Example]
    if running and config.texts != "train":
        raise ValueError(f"texts must be 'train' with data='english', which has no others, got {config.texts!r}")
    if running:
        name, texts = "english", [Example(paragraph, "") for paragraph in general_text()]
    else:
        facts = load_facts(config.data)
        name, texts = facts.name, facts.pretraining if config.texts == "pretraining" else facts.train
    if not texts:
        raise ValueError(f"data {config.data!r} has no pre-training texts; use texts='train'")
    model, tokenizer = checkpoints.load(config.model, config.dtype, device=config.device)
    prepare = partial(sequences_by_length, model, tokenizer, texts, running=running, seed=config.seed)
    sequences = prepare(config.lengths, samples=config.samples, tokens=config.tokens)
    for length in sorted(set(config.lengths) - set(sequences)):
        print(
            f"bico probe: lengths: {length} is left out, because the model's context or the data is shorter",
            file=sys.stderr,
        )
    folder = empty_folder(config.output_dir)
    options: dict[str, Any] = {"seed": config.seed, "batch_size": config.batch_size}
    measured: dict[str, Any] = {}
    if config.details:  # before the rest, because they may find the texts too short
        detailed = prepare([config.detail_length], samples=config.detail_samples)
        measured |= details(model, tokenizer, detailed.get(config.detail_length, []), **options)
    measured |= probe(
        model,
        tokenizer,
        sequences,
        masks=config.mask_rates,
        attention_samples=config.attention_samples,
        **options,
    )
    data = {"name": name, "texts": config.texts, "n": len(texts)}
    results = {"environment": environment.describe(), "settings": vars(config), "data": data} | measured
    write_json(folder / "probe.json", results)
    print(write_probe_report(results, folder))
    print(f"In {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
