"""`bico probe`: measure what the flipped sines change for a frozen model."""

from dataclasses import dataclass, field

import torch

from bico_ext import environment
from bico_ext.cli.arguments import parse
from bico_ext.cli.output import empty_folder
from bico_ext.comparison.probe import probe
from bico_ext.facts.loader import load_facts
from bico_ext.files import write_json
from bico_ext.models import checkpoints
from bico_ext.ops.attention import has_kernels
from bico_ext.reports.probe_report import write_probe_report


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
            "help": "'synthetic', 'invented', a folder of facts, a file (.jsonl, .txt, .csv or .tsv) or a hub name."
        },
    )
    texts: str = field(
        default="train",
        metadata={"help": "The part of the data to read.", "choices": ["train", "pretraining"]},
    )
    samples: int = field(
        default=256, metadata={"help": "Largest number of texts, and of packed sequences of each length."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice of texts and of the hidden tokens."})
    batch_size: int = field(default=16, metadata={"help": "Number of sequences at once."})


def run(arguments: list[str]) -> None:
    (config,) = parse("probe", [ProbeConfig], arguments)
    facts = load_facts(config.data)
    texts = facts.pretraining if config.texts == "pretraining" else facts.train
    if not texts:
        raise ValueError(f"data {config.data!r} has no pre-training texts; use texts='train'")
    model, tokenizer = checkpoints.load(config.model)
    folder = empty_folder(config.output_dir)
    model = model.to("cuda" if torch.cuda.is_available() and has_kernels("cuda") else "cpu")
    measured = probe(model, tokenizer, texts, samples=config.samples, seed=config.seed, batch_size=config.batch_size)
    data = {"name": facts.name, "texts": config.texts, "n": len(texts)}
    results = {"environment": environment.describe(), "settings": vars(config), "data": data} | measured
    print(write_probe_report(results, folder))
    write_json(folder / "probe.json", results)
    print(f"In {folder}: probe.json, table.md, attention.png, denoising.png")
