"""The trainer that a comparison uses, for pre-training as for the systems."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PrinterCallback

from bico_ext.comparison.config import CompareConfig
from bico_ext.facts.types import Example
from bico_ext.ops.attention import has_kernels
from bico_ext.training.config import BicoConfig
from bico_ext.training.trainer import BicoTrainer


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
        mask_rate=config.mask_rate,
        infill_spans=config.infill_spans,
        permute_segments=config.permute_segments,
        entities_file=None if entities_file is None else str(entities_file),
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
        save_strategy="no",  # only the trained model is saved, at the end
        report_to="none",
        disable_tqdm=True,
    )
    dataset = [{"prompt": example.prompt, "completion": example.completion} for example in examples]
    trainer = BicoTrainer(model, args, dataset, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)  # the log becomes part of the results
    return trainer
