"""`bico evaluate`: evaluate a model on facts in both directions."""

import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bico_ext import environment
from bico_ext.bounds import check_bounds
from bico_ext.cli.arguments import parse
from bico_ext.cli.report import print_report
from bico_ext.evaluation.ceiling import reachable
from bico_ext.evaluation.evaluate import evaluate
from bico_ext.extras import install
from bico_ext.facts.loader import load_facts
from bico_ext.files import empty_folder, write_json, write_json_lines, write_text
from bico_ext.generation.inference import BATCH_SIZE, is_rank_0
from bico_ext.models import checkpoints
from bico_ext.reports.records import Results, Run, data_from_json, tasks_from_json
from bico_ext.reports.report import markdown
from bico_ext.reports.summary import summary_table


@dataclass
class EvaluateConfig:
    """Evaluate a model on facts in both directions."""

    data: str = field(
        metadata={
            "help": "'synthetic', 'invented', a folder of facts, a file (.jsonl, .txt, .csv or .tsv) or a hub name."
        }
    )
    model: str = field(metadata={"help": "The model: a path, a name of bico fetch-model or a hub name."})
    output_dir: str = field(metadata={"help": "Folder for results.json, predictions.jsonl and table.md."})
    max_new_tokens: int = field(
        default=40,
        metadata={"help": "Largest number of tokens of an answer; the default is that of the paper's script."},
    )
    batch_size: int | None = field(
        default=None, metadata={"help": f"Number of prompts at once. Default: {BATCH_SIZE}."}
    )
    generation: str = field(
        default="causal",
        metadata={
            "help": "How the model answers. 'causal': it continues the prompt. 'mask' or 'gmask': it fills a [MASK] or "
            "[gMASK] after the prompt, as models trained with blank infilling and two-dimensional positions ('abi') "
            "do.",
            "choices": ["causal", "mask", "gmask"],
        },
    )
    likelihood: bool = field(
        default=False,
        metadata={"help": "Also run the log-probability test: are right answers likelier than the data's wrong ones?"},
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Dtype of the weights. Half precision may choose another of two almost equally likely tokens.",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={
            "help": "Load the model, or the base of adapters, in 4 bits. Adapters of bico train --load_in_4bit need no "
            f"flag. To get bitsandbytes: {install('qlora')}"
        },
    )
    distributed: bool = field(
        default=False,
        metadata={
            "help": "Divide the questions among several processes, each with the whole model: torchrun --no-python "
            "--nproc_per_node 8 bico evaluate --distributed ..."
        },
    )


def run(arguments: list[str]) -> None:
    (config,) = parse("evaluate", [EvaluateConfig], arguments)
    check_bounds(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    if config.distributed:
        _join_processes()
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "each process of torchrun would answer all questions; add --distributed, or start bico evaluate without "
            "torchrun"
        )
    facts = load_facts(config.data)
    model, tokenizer = checkpoints.load(config.model, config.dtype, load_in_4bit=config.load_in_4bit)
    folder = empty_folder(config.output_dir)
    extra: dict[str, Any] = {} if config.batch_size is None else {"batch_size": config.batch_size}
    if config.generation != "causal":
        from bico_ext.generation.blanks import generate_blank
        from bico_ext.models.attach import attach

        attach(model)
        extra["generator"] = partial(generate_blank, mask=config.generation)
    evaluation = evaluate(
        model,
        tokenizer,
        facts.tasks,
        max_new_tokens=config.max_new_tokens,
        likelihood=config.likelihood,
        distributed=config.distributed,
        **extra,
    )
    if config.distributed:
        first = is_rank_0()
        torch.distributed.destroy_process_group()
        if not first:
            return
    record = Run(
        config.model,
        tasks=tasks_from_json(evaluation.summary()),
        parameters=model.num_parameters(),
        model_digest=checkpoints.content_digest(config.model),
    )
    results = Results(
        (record,),
        environment=environment.describe(),
        settings={name: value for name, value in vars(config).items() if name != "distributed"},  # same results
        data=data_from_json({**reachable(facts), "digest": facts.digest()}),
    )
    write_json_lines(folder / "predictions.jsonl", (entry.to_json() for entry in evaluation.predictions))
    write_text(folder / "table.md", markdown(results))
    write_json(folder / "results.json", results.to_json())
    print_report(summary_table(results), config.output_dir)


def _join_processes() -> None:
    """Join the process group of torchrun and use the GPU that is meant for this process."""
    if not torch.distributed.is_torchelastic_launched():
        raise ValueError(
            "distributed needs processes to divide the questions among; start it with torchrun --no-python "
            "--nproc_per_node 8 bico evaluate --distributed ..., or leave --distributed out"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group()
