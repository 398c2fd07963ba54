"""One initial model trained under several objectives and seeds, each run evaluated on the same tasks.

Runs are spread over `jobs` processes that share the cores, by default one a core with one thread each: on models of
this size a second thread hardly helps a run, and a run with one thread does not stall when the machine has other work.
"""

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from bico_ext import environment
from bico_ext.attention import has_kernels
from bico_ext.data import FactData, load_facts
from bico_ext.denoising import check_mask_rate
from bico_ext.evaluation import encode_prompts, evaluate
from bico_ext.files import write_json, write_json_lines
from bico_ext.objectives import OBJECTIVES, check_objective
from bico_ext.tokenization import train_word_tokenizer
from bico_ext.trainer import BicoConfig, BicoTrainer

HEADS = 4  # of the tiny model

# What the two data sets differ in; everything else is the same for both. Sources: docs/experiments.md.
PRESETS: dict[str, dict[str, Any]] = {
    "synthetic": {"layers": 2, "learning_rate": 2e-3, "steps": 3000},
    "berglund": {"layers": 4, "learning_rate": 3e-3, "steps": 1500},
}


@dataclass(frozen=True)
class CompareConfig:
    """Train one initial model under several objectives and seeds, and compare them on the same questions.

    `None` takes the preset of the data set (`PRESETS`).

    Raises:
        ValueError: an unknown objective, a repeated seed or objective, a number out of range.
    """

    output_dir: str = field(metadata={"help": "Where results, predictions, table and pictures go."})
    data: str = field(
        default="synthetic", metadata={"help": "'synthetic', a folder of facts, a JSONL file or a hub name."}
    )
    objectives: list[str] = field(
        default_factory=lambda: ["ntp", "bico", "infill"],
        metadata={"help": "Objectives to train, each mixed half and half with NTP."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Seeds of initial weights, order and masks."}
    )
    model: str = field(
        default="tiny", metadata={"help": "'tiny' (a random Llama and a word tokenizer), a path or a hub name."}
    )
    steps: int | None = field(default=None, metadata={"help": "Optimizer steps; 3,000 (synthetic) or 1,500."})
    learning_rate: float | None = field(default=None, metadata={"help": "Peak; 2e-3 (synthetic) or 3e-3."})
    layers: int | None = field(default=None, metadata={"help": "Of the tiny model; 2 (synthetic) or 4."})
    hidden_size: int = field(default=128, metadata={"help": "Of the tiny model, which has 4 heads."})
    batch_size: int = field(default=32, metadata={"help": "Rows an optimizer step."})
    mask_rate: float = field(default=0.3, metadata={"help": "Of 'bico'. The library's default is the paper's 0.15."})
    mixing_probability: float = field(default=0.5, metadata={"help": "Of the objective, at each optimizer step."})
    weight_decay: float = field(default=0.1, metadata={"help": "Of AdamW, betas 0.9 and 0.98."})
    warmup_steps: int = field(default=50, metadata={"help": "Before the cosine decay to 0."})
    bf16: bool = field(default=True, metadata={"help": "Train under bfloat16 autocast; evaluation is in float32."})
    max_new_tokens: int = field(default=40, metadata={"help": "Of an answer; 40 in the official script."})
    jobs: int | None = field(
        default=None, metadata={"help": "Runs at once, which share the cores; default: one a core."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Keep the finished runs that output_dir holds and add the missing ones."}
    )

    def __post_init__(self) -> None:
        for name in self.objectives:
            check_objective(name)
        check_mask_rate(self.mask_rate)
        for name, values in (("objectives", self.objectives), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or more, each once, got {list(values)}")
        preset = PRESETS["synthetic" if self.data == "synthetic" else "berglund"]
        for name, value in preset.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("steps", "layers", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}; leave it out for one a core")
        if self.hidden_size < 1 or self.hidden_size % (2 * HEADS):
            raise ValueError(f"hidden_size must be a multiple of {2 * HEADS} ({HEADS} heads), got {self.hidden_size}")
        for name in ("learning_rate", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.mixing_probability <= 1:
            raise ValueError(f"mixing_probability must be in [0, 1], got {self.mixing_probability}")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a run's numbers: all but where they go, and which runs are asked for."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in ("output_dir", "objectives", "seeds", "jobs", "resume")
        }


def compare(config: CompareConfig) -> dict[str, Any]:
    """Train and evaluate every objective under every seed; write and return the results.

    Args:
        config: what to run.

    Returns:
        What `results.json` holds: {"environment", "settings", "runs": [{"objective", "seed", "train_seconds",
        "parameters", "losses", "tasks": {name: {"n", "contains", "exact_match", "bleu_char", "bleu", ...}}}]}.

    Raises:
        FileExistsError: the output folder holds a run, and `config.resume` is not set or its settings are others.
        ValueError: the data has no training examples or no tasks.
    """
    folder = Path(config.output_dir)
    facts = load_facts(config.data)
    if not facts.tasks:
        raise ValueError(f"data {config.data!r} has no tasks to evaluate, as bico compare needs; try bico train")
    _check_model(config, facts)
    _claim(folder, config)

    missing = [
        (objective, seed)
        for seed in config.seeds
        for objective in config.objectives
        if not _run_file(folder, objective, seed).exists()
    ]
    cores = len(os.sched_getaffinity(0))
    jobs = config.jobs or cores
    threads = max(1, cores // jobs)
    if missing:
        _run_all(config, missing, jobs, threads)
    runs = [json.loads(file.read_text()) for file in (folder / "runs").glob("*.json")]
    runs.sort(key=lambda run: (list(OBJECTIVES).index(run["objective"]), run["seed"]))
    predictions = [row for run in runs for row in run.pop("predictions")]
    machine = {**environment.describe(), "threads": threads, "jobs": jobs}  # of a run, and runs at once
    results = {"environment": machine, "settings": config.settings, "runs": runs}
    write_json_lines(folder / "predictions.jsonl", predictions)
    write_json(folder / "results.json", results)
    return results


def run(
    config: CompareConfig, objective: str, seed: int, callbacks: list[TrainerCallback] | None = None
) -> dict[str, Any]:
    """One run: initial model, training, evaluation. See `compare` for the result; it also has "predictions"."""
    facts = load_facts(config.data)
    model, tokenizer = initial_model(config, facts, seed)
    args = BicoConfig(
        output_dir=str(Path(config.output_dir) / "runs" / f"{objective}-seed{seed}"),
        objective=objective,
        mixing_probability=config.mixing_probability,
        mask_rate=config.mask_rate,
        max_steps=cast(int, config.steps),
        per_device_train_batch_size=config.batch_size,
        train_sampling_strategy="group_by_length",
        learning_rate=cast(float, config.learning_rate),
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=0.98,
        bf16=config.bf16,
        use_cpu=not (torch.cuda.is_available() and has_kernels("cuda")),
        seed=seed,
        logging_steps=25,
        save_strategy="no",  # but for the trained model
        report_to="none",
        disable_tqdm=True,
    )
    rows = [{"prompt": example.prompt, "completion": example.completion} for example in facts.train]
    trainer = BicoTrainer(model, args, rows, processing_class=tokenizer, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)  # the log goes into the results
    started = time.perf_counter()
    trainer.train()
    train_seconds = time.perf_counter() - started
    trainer.save_model()
    evaluation = evaluate(model, tokenizer, facts.tasks, max_new_tokens=config.max_new_tokens, progress=False)
    return {
        "objective": objective,
        "seed": seed,
        "train_seconds": round(train_seconds, 1),
        "parameters": model.num_parameters(),
        "losses": [
            {
                name: value if math.isfinite(value) else None  # JSON has no NaN, and a diverged run is a result too
                for name, value in entry.items()
                if name == "step" or name.startswith("loss_")
            }
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
        "tasks": evaluation.summary(),
        "predictions": [
            {"objective": objective, "seed": seed, **dataclasses.asdict(row)} for row in evaluation.predictions
        ],
    }


def initial_model(config: CompareConfig, facts: FactData, seed: int) -> tuple[Any, Any]:
    """The model before training and its tokenizer; the same for every objective of a seed.

    The tiny model's vocabulary comes from the training text alone: a word that only a test prompt has is unknown.
    """
    set_seed(seed)
    if config.model != "tiny":
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        return AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32), tokenizer
    tokenizer = train_word_tokenizer([example.prompt + example.completion for example in facts.train])
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 4,
        num_hidden_layers=cast(int, config.layers),
        num_attention_heads=HEADS,
        max_position_embeddings=tokenizer.model_max_length,
        # transformers' 0.02 suits widths in the thousands: at 128 denoising learned later and reversed less.
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(llama), tokenizer


def _check_model(config: CompareConfig, facts: FactData) -> None:
    """Find a model that cannot be loaded or a question that does not fit now, not after hours of training."""
    model, tokenizer = initial_model(config, facts, config.seeds[0])
    prompts = [example.prompt for task in facts.tasks.values() for example in task.examples]
    encode_prompts(model, tokenizer, prompts, config.max_new_tokens)


def _claim(folder: Path, config: CompareConfig) -> None:
    """Take the folder for these settings, or say why not. Settings that finished no run do not hold it."""
    file = folder / "settings.json"
    settings = json.loads(json.dumps(config.settings))  # as they will be read back
    if any((folder / "runs").glob("*.json")):
        if not config.resume:
            raise FileExistsError(
                f"output_dir {folder} already holds a run; add --resume to keep its finished runs and add the missing "
                "ones, or name another folder"
            )
        held = json.loads(file.read_text())
        changed = [name for name in settings if held.get(name) != settings[name]]
        if changed:
            differences = ", ".join(f"{name} {held.get(name)!r} -> {settings[name]!r}" for name in changed)
            raise FileExistsError(
                f"output_dir {folder} holds runs with other settings ({differences}); name another folder"
            )
    elif folder.exists() and any(folder.iterdir()) and not file.exists():
        raise FileExistsError(f"output_dir {folder} is not empty and holds no comparison; name another folder")
    write_json(file, settings)


def _run_file(folder: Path, objective: str, seed: int) -> Path:
    return folder / "runs" / f"{objective}-seed{seed}.json"


_steps_done: Any = None  # in a worker: the shared counter of optimizer steps


class _CountSteps(TrainerCallback):
    """Tells the parent process how far the run is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with _steps_done.get_lock():
            _steps_done.value += 1


def _work(config: CompareConfig, objective: str, seed: int, threads: int, steps_done: Any, failure: Connection) -> None:
    """One run in its own process; what goes wrong is sent to the parent."""
    global _steps_done
    _steps_done = steps_done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    try:
        write_json(_run_file(Path(config.output_dir), objective, seed), run(config, objective, seed, [_CountSteps()]))
    except Exception as error:
        failure.send(error)


def _run_all(config: CompareConfig, missing: list[tuple[str, int]], jobs: int, threads: int) -> None:
    """Every missing run; a finished run is on disk whatever becomes of the others."""
    context = multiprocessing.get_context("spawn")
    steps_done = context.Value("q", 0)
    waiting = list(missing)
    running: list[tuple[tuple[str, int], Any, Connection]] = []  # run, its process, where a failure comes from
    failures: list[Exception] = []
    with (
        _children_with_threads(threads),
        tqdm(total=len(missing) * cast(int, config.steps), desc=f"{len(missing)} runs", unit="step") as bar,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(config, *waiting[0], threads, steps_done, sender))
                    process.start()
                    sender.close()  # now the child's end is the only one
                    running.append((waiting.pop(0), process, receiver))
                time.sleep(0.2)
                bar.update(steps_done.value - bar.n)
                for entry in [entry for entry in running if not entry[1].is_alive()]:
                    running.remove(entry)
                    failures += _failure(*entry)
        finally:  # after Ctrl-C some are left
            for _, process, _ in running:
                process.terminate()
    if failures:
        raise failures[0]


def _failure(run: tuple[str, int], process: Any, receiver: Connection) -> list[Exception]:
    """What a process that has ended died of, if it did."""
    try:
        return [receiver.recv()]
    except EOFError:  # it sent nothing
        if process.exitcode == 0:
            return []
    objective, seed = run
    return [RuntimeError(f"{objective} with seed {seed} was ended from outside (exit code {process.exitcode})")]


@contextlib.contextmanager
def _children_with_threads(count: int) -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
