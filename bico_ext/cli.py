"""The `bico` command: parses, builds, calls. Heavy imports wait until a command needs them."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

USAGE = """usage: bico COMMAND [OPTIONS]     bico COMMAND --help lists a command's options

  compare    train one initial model under several objectives and seeds, write the comparison
  train      fine-tune a model on facts in both directions
  evaluate   ask a model facts in both directions
  report     tables, pictures and a page of one or more finished comparisons
  probe      what a frozen model's attention and denoising loss gain from the flipped sines
  info       versions, instruction sets, threads, CUDA
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 it failed, 2 wrong usage, 130 interrupted."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    if command not in COMMANDS:
        print(f"{USAGE}\nbico: {command!r} is not a command", file=sys.stderr)
        return 2
    try:
        COMMANDS[command](rest)
    except KeyboardInterrupt:
        kept = "; what was finished is kept, --resume goes on from it" if command in ("compare", "train") else ""
        print(f"bico {command}: interrupted{kept}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"bico {command}: {error}", file=sys.stderr)
        return 1
    return 0


def _compare(arguments: list[str]) -> None:
    from bico_ext.comparison.compare import compare
    from bico_ext.comparison.config import CompareConfig
    from bico_ext.reports.report import FILES, write_report

    (config,) = _parse("compare", [CompareConfig], arguments)
    results = compare(config)
    failures = [f"{one['objective']} with seed {one['seed']}: {one['error']}" for one in results["failures"]]
    if not results["runs"]:
        raise RuntimeError(f"no run was finished; {'; '.join(failures)}")
    print(write_report(results, config.output_dir))
    _name_files(config.output_dir, ("results.json", "predictions.jsonl", *FILES))
    if failures:
        raise RuntimeError(f"{len(failures)} runs failed ({'; '.join(failures)}); --resume runs them again")


@dataclass
class TrainConfig:
    """What to train on what; how is in `BicoConfig`."""

    data: str = field(metadata={"help": "'synthetic', a folder of facts, a file (.jsonl, .txt, .csv) or a hub name."})
    model: str = field(metadata={"help": "A path or a hub name."})
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Train LoRA adapters of this rank on all linear layers but lm_head; 32 in the paper."},
    )
    lora_alpha: int = field(default=16, metadata={"help": "Of LoRA; the paper's."})
    lora_dropout: float = field(default=0.01, metadata={"help": "Of LoRA; the paper's."})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest checkpoint in output_dir."})


def _train(arguments: list[str]) -> None:
    from transformers.trainer_utils import get_last_checkpoint

    from bico_ext.facts.loader import load_facts
    from bico_ext.models import checkpoints
    from bico_ext.training.config import BicoConfig
    from bico_ext.training.trainer import BicoTrainer

    config, args = _parse("train", [TrainConfig, BicoConfig], arguments)
    if args.output_dir == "trainer_output":  # the Trainer's default
        raise ValueError("output_dir is needed: --output-dir OUT")
    folder = Path(args.output_dir)
    used = folder.exists() and any(folder.iterdir())
    checkpoint = get_last_checkpoint(str(folder)) if used and config.resume else None
    if used and checkpoint is None:
        remedy = "which has no checkpoint to go on from; name" if config.resume else "add --resume to go on, or name"
        raise FileExistsError(f"output_dir {folder} already holds files, {remedy} another folder")
    facts = load_facts(config.data)
    rows = [{"prompt": example.prompt, "completion": example.completion} for example in facts.train]
    model, tokenizer = checkpoints.load(config.model)
    trainer = BicoTrainer(model, args, rows, processing_class=tokenizer, peft_config=_lora(config))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or checkpoint)
    trainer.save_model()  # with the tokenizer
    print(f"{folder}: the trained model; bico evaluate --model {folder} --data {config.data} --output-dir OUT")


def _lora(config: TrainConfig) -> Any:
    if config.lora_r is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError('lora_r needs PEFT: pip install "bico-ext[lora]"') from error
    return LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )


@dataclass
class EvaluateConfig:
    """Which model to ask what."""

    data: str = field(metadata={"help": "'synthetic', a folder of facts, a file (.jsonl, .txt, .csv) or a hub name."})
    model: str = field(metadata={"help": "A path or a hub name."})
    output_dir: str = field(metadata={"help": "For results.json, predictions.jsonl and table.md."})
    max_new_tokens: int = field(default=40, metadata={"help": "Of an answer; 40 in the official script."})
    batch_size: int | None = field(default=None, metadata={"help": "Prompts at once."})
    generation: str = field(
        default="causal",
        metadata={
            "help": "How answers are written: continuing the prompt, or filling a [MASK] or [gMASK] after it, for "
            "models of blank infilling with two-dimensional positions ('abi').",
            "choices": ["causal", "mask", "gmask"],
        },
    )
    likelihood: bool = field(
        default=False, metadata={"help": "Also test whether right answers are likelier than the data's wrong ones."}
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the weights; half precision flips near-ties.",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )


def _evaluate(arguments: list[str]) -> None:
    import torch

    from bico_ext.evaluation.ceiling import reachable
    from bico_ext.evaluation.evaluate import evaluate
    from bico_ext.facts.loader import load_facts
    from bico_ext.files import write_json, write_json_lines, write_text
    from bico_ext.generation.blanks import generate_blank
    from bico_ext.models import checkpoints
    from bico_ext.models.attach import attach
    from bico_ext.reports import environment, report

    (config,) = _parse("evaluate", [EvaluateConfig], arguments)
    facts = load_facts(config.data)
    model, tokenizer = checkpoints.load(config.model, config.dtype)
    folder = _empty_folder(config.output_dir)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    extra: dict[str, Any] = {} if config.batch_size is None else {"batch_size": config.batch_size}
    if config.generation != "causal":
        attach(model)
        extra["generator"] = partial(generate_blank, mask=config.generation)
    evaluation = evaluate(
        model, tokenizer, facts.tasks, max_new_tokens=config.max_new_tokens, likelihood=config.likelihood, **extra
    )
    run = {"objective": config.model, "parameters": model.num_parameters(), "tasks": evaluation.summary()}
    results = {
        "environment": environment.describe(),
        "settings": vars(config),
        "data": {**reachable(facts), "digest": facts.digest()},
        "runs": [run],
    }
    write_json_lines(folder / "predictions.jsonl", map(asdict, evaluation.predictions))
    write_text(folder / "table.md", report.table(results))
    write_json(folder / "results.json", results)
    print(report.table(results))


def _empty_folder(path: str) -> Path:
    """The output folder, made before the work."""
    from bico_ext.files import make_folder

    folder = make_folder(path)
    if any(folder.iterdir()):
        raise FileExistsError(f"output_dir {folder} already holds files; name another folder")
    return folder


def _report(arguments: list[str]) -> None:
    import argparse

    from bico_ext.reports.report import FILES, merged_report

    parser = argparse.ArgumentParser(
        "bico report", description="One report on the results of one or more folders, which are only read."
    )
    parser.add_argument("folders", nargs="+", metavar="OUT", help="A folder of bico compare or bico evaluate.")
    parser.add_argument("--output-dir", "--output_dir", required=True, help="For the report; new, or of a report.")
    options = parser.parse_args(arguments)
    print(merged_report(options.folders, options.output_dir))
    _name_files(options.output_dir, FILES)


def _name_files(folder: str, names: Sequence[str]) -> None:
    """Say which of the files that a command may write are there."""
    print(f"{folder}: {', '.join(name for name in names if (Path(folder) / name).exists())}")


@dataclass
class ProbeConfig:
    """Measure what the flipped sines change for a model as it is: where it attends, how it restores hidden tokens."""

    model: str = field(metadata={"help": "A path or a hub name; it is not trained."})
    output_dir: str = field(metadata={"help": "For probe.json, table.md, attention.png and denoising.png."})
    data: str = field(
        default="synthetic",
        metadata={"help": "'synthetic', a folder of facts, a file (.jsonl, .txt, .csv) or a hub name."},
    )
    texts: str = field(
        default="train",
        metadata={"help": "Which of its texts are read.", "choices": ["train", "pretraining"]},
    )
    samples: int = field(default=256, metadata={"help": "Texts, and packed sequences of each length, at most."})
    seed: int = field(default=0, metadata={"help": "Of the choice of texts and of the hidden tokens."})
    batch_size: int = field(default=16, metadata={"help": "Sequences at once."})


def _probe(arguments: list[str]) -> None:
    import torch

    from bico_ext.comparison.probe import probe
    from bico_ext.facts.loader import load_facts
    from bico_ext.files import write_json
    from bico_ext.models import checkpoints
    from bico_ext.ops.attention import has_kernels
    from bico_ext.reports import environment
    from bico_ext.reports.probe_report import write_probe_report

    (config,) = _parse("probe", [ProbeConfig], arguments)
    facts = load_facts(config.data)
    texts = facts.pretraining if config.texts == "pretraining" else facts.train
    if not texts:
        raise ValueError(f"data {config.data!r} has no pre-training texts; use texts='train'")
    model, tokenizer = checkpoints.load(config.model)
    folder = _empty_folder(config.output_dir)
    model = model.to("cuda" if torch.cuda.is_available() and has_kernels("cuda") else "cpu")
    measured = probe(model, tokenizer, texts, samples=config.samples, seed=config.seed, batch_size=config.batch_size)
    data = {"name": facts.name, "texts": config.texts, "n": len(texts)}
    results = {"environment": environment.describe(), "settings": vars(config), "data": data} | measured
    print(write_probe_report(results, folder))
    write_json(folder / "probe.json", results)
    print(f"{folder}: probe.json, table.md, attention.png, denoising.png")


def _info(arguments: list[str]) -> None:
    import argparse

    from bico_ext.reports import environment

    argparse.ArgumentParser("bico info", description="Versions and machine, as JSON.").parse_args(arguments)
    print(json.dumps(environment.describe(), indent=1))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "compare": _compare,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "probe": _probe,
    "info": _info,
}


def _parse(command: str, configs: list[Any], arguments: list[str]) -> tuple[Any, ...]:
    """The dataclasses from flags, over the YAML file that `--config` names, over their defaults."""
    from argparse import ArgumentParser

    from transformers import HfArgumentParser

    def mask_rate(text: str) -> float | str:
        return text if text == "uniform" else float(text)

    summary = configs[0].__doc__.split("\n")[0]
    parser = HfArgumentParser(configs, prog=f"bico {command}", description=summary, allow_abbrev=False)
    for action in parser._actions:
        if action.dest == "mask_rate":  # HfArgumentParser makes a float of `float | str`
            action.type = mask_rate
    parser.add_argument("--config", metavar="FILE", help="YAML with any of these options by name; flags win over it.")
    only_config = ArgumentParser(f"bico {command}", add_help=False, allow_abbrev=False)
    only_config.add_argument("--config", metavar="FILE")
    path = only_config.parse_known_args(arguments)[0].config
    from_file = [] if path is None else _as_flags(path, {action.dest for action in parser._actions})
    *parsed, _, unknown = parser.parse_args_into_dataclasses([*from_file, *arguments], return_remaining_strings=True)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return tuple(parsed)


def _as_flags(path: str, known: set[str]) -> list[str]:
    """The options in a YAML file as flags, so that they are checked as flags are."""
    import yaml

    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold options as `name: value`, got {type(options).__name__}")
    options = {str(name).replace("-", "_"): value for name, value in options.items()}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{path} has unknown options: {', '.join(unknown)}; see --help for those there are")
    flags = []
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        texts = [json.dumps(one) if isinstance(one, bool | dict) else str(one) for one in values]
        flags += [f"--{name}", *texts]
    return flags


if __name__ == "__main__":
    sys.exit(main())
