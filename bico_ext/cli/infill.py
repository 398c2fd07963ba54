"""`bico infill`: write the missing middles of texts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bico_ext.bounds import check_bounds
from bico_ext.cli.arguments import parse
from bico_ext.facts.jsonl import read_records
from bico_ext.files import make_folder, write_json_lines
from bico_ext.generation.inference import BATCH_SIZE
from bico_ext.generation.infilling import LENGTHS, generate_infill
from bico_ext.models import checkpoints
from bico_ext.models.attach import attach


@dataclass
class InfillConfig:
    """Write the missing middles of texts, with a model that was trained with the objective 'infill'."""

    model: str = field(metadata={"help": "The model: a path, a name of bico fetch-model or a hub name."})
    prefix: str | None = field(default=None, metadata={"help": "The text before the gap. Default: none."})
    suffix: str | None = field(
        default=None,
        metadata={"help": "The text after the gap, with the space in front of it. Default: none."},
    )
    input: str | None = field(
        default=None, metadata={"help": 'JSONL file with "prefix" and "suffix" on each line, in place of one text.'}
    )
    output: str | None = field(
        default=None,
        metadata={"help": 'New JSONL file, with "middle" in addition. The middle of a single text is printed.'},
    )
    lengths: str = field(
        default=f"{LENGTHS[0]}-{LENGTHS[-1]}",
        metadata={"help": "Numbers of tokens of a middle, of which the one that gives the likeliest text is chosen."},
    )
    mirror: bool = field(
        default=True,
        metadata={
            "help": "Score later tokens with flipped sines, as infill trains; models of infill-naive need --no_mirror."
        },
    )
    causal_context: bool = field(
        default=False, metadata={"help": "Read the context causally, for models of infill-causal."}
    )
    batch_size: int = field(
        default=BATCH_SIZE, metadata={"help": "Number of texts at once; each gap counts once for each length."}
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Dtype of the weights. Half precision may choose another of two almost equally likely tokens.",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )


def run(arguments: list[str]) -> None:
    (config,) = parse("infill", [InfillConfig], arguments)
    check_bounds(batch_size=config.batch_size)
    lengths, gaps = _lengths(config.lengths), _gaps(config)
    model, tokenizer = checkpoints.load(config.model, config.dtype)
    attach(model)
    options: dict[str, Any] = {"mirror": config.mirror, "causal_context": config.causal_context}
    middles = generate_infill(model, tokenizer, gaps, lengths=lengths, batch_size=config.batch_size, **options)
    if config.output is None:
        print(middles[0])
        return
    rows = [
        {"prefix": prefix, "suffix": suffix, "middle": middle}
        for (prefix, suffix), middle in zip(gaps, middles, strict=True)
    ]
    write_json_lines(config.output, rows)
    print(f"In {config.output}: {len(rows)} middles")


def _lengths(text: str) -> range:
    """Return the lengths that "1-8" or "3" names."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or not (lengths := range(int(match[1]), int(match[2] or match[1]) + 1)):
        raise ValueError(f"lengths must be a number or a range such as 1-8, got {text!r}")
    return lengths


def _gaps(config: InfillConfig) -> list[tuple[str, str]]:
    """Return the given gaps, after a check of the options about input and output."""
    if config.input is None:
        if config.prefix is None and config.suffix is None:
            raise ValueError("prefix and suffix are missing; add at least one of them, or --input FILE --output FILE")
        if config.output is not None:
            raise ValueError("output needs an input file; add --input FILE, or leave output out to print the middle")
        return [(config.prefix or "", config.suffix or "")]
    if config.prefix is not None or config.suffix is not None:
        raise ValueError("prefix and suffix cannot be given together with input, which holds them; leave one out")
    if config.output is None:
        raise ValueError("output is missing; add --output FILE for the middles of the input")
    if Path(config.output).exists():
        raise FileExistsError(f"output {config.output} already exists; name another file")
    gaps = list(_read(config.input))
    if not gaps:
        raise ValueError(f"{config.input} holds no gaps; expected at least one line")
    make_folder(Path(config.output).parent)
    return gaps


def _read(path: str) -> Iterator[tuple[str, str]]:
    for where, record in read_records(path):
        prefix, suffix = (record.get("prefix"), record.get("suffix")) if isinstance(record, dict) else (None, None)
        if not (isinstance(prefix, str) and isinstance(suffix, str)):
            raise ValueError(f"{where}: expected an object with the strings prefix and suffix, got {record!r:.60}")
        yield prefix, suffix
