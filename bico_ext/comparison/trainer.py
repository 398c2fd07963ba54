"""The trainer that a comparison uses, for pre-training as for the systems, and the memory that it takes."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PrinterCallback

from bico_ext.comparison.config import CompareConfig
from bico_ext.facts.types import Example
from bico_ext.training.config import BicoConfig
from bico_ext.training.lora import lora_config
from bico_ext.training.trainer import BicoTrainer

# Bytes for each parameter of the model, in float32: weights and, without adapters, gradients and AdamW's two moments.
MEMORY = {"full": 16, "lora": 4}
CHECKPOINT = {"full": 12, "lora": 0}  # weights and moments; those of adapters are small
MODEL = {"full": 4, "lora": 0}


def trains_on_gpu() -> bool:
    """Return whether models are trained on a GPU."""
    return torch.cuda.is_available()


def make_trainer(
    config: CompareConfig,
    objective: str,
    mixing_probability: float,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    seed: int,
    output: Path,
    entities_file: Path | None = None,
) -> BicoTrainer:
    """Build the trainer of a model.

    Args:
        config: the settings of the comparison; `steps` and `learning_rate` are those of this training.
        objective: a key of `bico_ext.objectives.registry.OBJECTIVES`.
        mixing_probability: probability that an optimizer step trains the objective.
        model: the model to train.
        tokenizer: the model's tokenizer.
        examples: the texts to train on.
        seed: the seed of the order, the masks and the choice of objective.
        output: the folder for the trained model.
        entities_file: names that the objective keeps whole, if it uses them.
    """
    args = BicoConfig(
        output_dir=str(output),
        objective=objective,
        mixing_probability=mixing_probability,
        mask_rate=cast(float | str, config.mask_rate),
        infill_spans=config.infill_spans,
        permute_segments=config.permute_segments,
        # Without a padding token, as in Llama 1 to 3: 0, as in the official code.
        placeholder_id=0 if tokenizer.pad_token_id is None else None,
        entities_file=None if entities_file is None else str(entities_file),
        max_steps=cast(int, config.steps),
        per_device_train_batch_size=config.batch_size,
        train_sampling_strategy="group_by_length",
        learning_rate=cast(float, config.learning_rate),
        lr_scheduler_type="cosine",
        warmup_steps=cast(int, config.warmup_steps),
        weight_decay=cast(float, config.weight_decay),
        adam_beta2=cast(float, config.adam_beta2),
        bf16=config.bf16,
        use_cpu=not trains_on_gpu(),
        seed=seed,
        logging_steps=25,
        save_strategy="no",  # a callback asks for checkpoints
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    if args.n_gpu > 1:
        raise RuntimeError(
            f"one GPU trains a model here, so that batch_size is {config.batch_size} as the settings say, but torch "
            f"sees {args.n_gpu}; set CUDA_VISIBLE_DEVICES to one of them"
        )
    dataset = [{"prompt": example.prompt, "completion": example.completion} for example in examples]
    adapters = lora_config() if config.lora else None
    trainer = BicoTrainer(model, args, dataset, processing_class=tokenizer, peft_config=adapters)
    trainer.remove_callback(PrinterCallback)  # the log becomes part of the results
    return trainer


def check_memory(config: CompareConfig, parameters: int, jobs: int) -> None:
    """Raise an error now, not in the middle of loading, if a model cannot fit into the free memory.

    Args:
        config: the settings of the comparison.
        parameters: the number of parameters of the model.
        jobs: the number of runs at once.

    Raises:
        RuntimeError: weights, gradients and moments alone need more than there is.
    """
    each = MEMORY[_largest_training(config)]
    needed = each * parameters * jobs
    if trains_on_gpu():
        kind, free = "GPU memory", float(torch.cuda.mem_get_info()[0])
    else:
        kind, free = "memory", _free_memory()
    if needed > free:
        remedy = "use a smaller model" if config.lora else "set lora or use a smaller model"
        raise RuntimeError(
            f"model {config.model} needs {needed / 1e9:.1f} GB of {kind} and more ({each} bytes for each of "
            f"{parameters / 1e6:,.0f} million parameters, {jobs} at once), but {free / 1e9:.1f} GB are free; lower "
            f"jobs, {remedy}"
        )


def check_disk(config: CompareConfig, parameters: int, jobs: int, runs: int) -> None:
    """Raise an error if checkpoints and models do not fit on the disk of the output folder, which must exist.

    Args:
        config: the settings of the comparison.
        parameters: the number of parameters of the model.
        jobs: the number of runs at once, each of which holds two checkpoints while it writes one.
        runs: the number of runs, which leave a model each if `config.save_models`.

    Raises:
        RuntimeError: they need more than there is.
    """
    checkpoint, model = CHECKPOINT[_largest_training(config)], MODEL["lora" if config.lora else "full"]
    needed = parameters * (2 * checkpoint * min(jobs, runs) + model * runs * bool(config.save_models))
    free = shutil.disk_usage(config.output_dir).free
    if needed > free:
        remedy = "set save_models to False, " if config.save_models else ""
        raise RuntimeError(
            f"output_dir {config.output_dir} needs {needed / 1e9:.1f} GB for checkpoints and models, but its disk has "
            f"{free / 1e9:.1f} GB; {remedy}lower jobs or name a folder on another disk"
        )


def _largest_training(config: CompareConfig) -> str:
    """Return "lora" if adapters alone are trained, else "full"; pre-training always trains all weights."""
    return "lora" if config.lora and config.setting != "pretrained" else "full"


def _free_memory() -> float:
    """Return the bytes of memory that can be had without swapping; infinity where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except FileNotFoundError:
        return math.inf
