"""What a checkpoint was trained with, so that nobody resumes it with something else without noticing.

Recorded is what decides the weights that training ends with. It leaves out what changes them by rounding only (packing,
and how the batch of a step is divided among processes and micro-batches) and what does not change them at all.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import SchedulerType, TrainingArguments
from transformers.utils import logging

from bico_ext.files import read_json, read_text, write_json
from bico_ext.training.config import BicoConfig
from bico_ext.training.dataset import EncodedRows

logger = logging.get_logger(__name__)

RECORD = "trained_with.json"  # in a checkpoint
_INITIAL_WEIGHTS = "initial_weights"  # of a run that trains all weights
_SAMPLE = 64  # numbers of each tensor that the digest reads, spread over the tensor

_INHERITED = (
    *("seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last", "max_steps", "num_train_epochs"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16"),
)
_OWN = {option.name for option in dataclasses.fields(BicoConfig)} - {
    *(option.name for option in dataclasses.fields(TrainingArguments)),
    *("packing", "entities_file"),  # changes rounding only; its words are recorded, not where they lie
}
_SENTENCES = {
    "texts": "the training texts have changed",
    "entities": "the entities of entities_file have changed",
    "frozen_weights": "the weights under the adapters have changed",
}


def differences(then: Mapping[str, Any], now: Mapping[str, Any], sentences: Mapping[str, str]) -> str:
    """Say what differs between two records, with both values, or by the sentence of an entry; "" if nothing.

    Example:
        >>> differences({"seed": 0, "texts": "4f"}, {"seed": 1, "texts": "a0"}, {"texts": "the texts have changed"})
        'seed 0 -> 1, the texts have changed'
    """
    return ", ".join(
        sentences.get(name, f"{name} {then.get(name)!r} -> {now[name]!r}")
        for name in now
        if then.get(name) != now[name]
    )


def resume_record(args: BicoConfig, model: Any, train_dataset: Any) -> dict[str, Any]:
    """Return what decides the result of a training run, as JSON.

    Args:
        args: the training arguments.
        model: the model before training, which may be a PEFT model.
        train_dataset: the encoded rows. The texts of a stream are not known in advance, and so not recorded.

    Returns:
        The options by name; the number of rows per step ("batch"); the model's configuration; digests of the texts and
        of the model's weights. With adapters these are the weights under them, which no checkpoint holds.
    """
    record = {name: getattr(args, name) for name in (*_INHERITED, *sorted(_OWN))}
    if args.max_steps > 0:
        del record["num_train_epochs"]
    constant = SchedulerType(args.lr_scheduler_type).value.startswith("constant")
    if constant and not 0 < args.warmup_steps < 1:  # else a share of the length
        # A longer run then begins like a shorter one.
        for name in ("max_steps", "num_train_epochs"):
            record.pop(name, None)
    record["batch"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    record["optim"] = str(record["optim"].value).removesuffix("_fused")  # changes rounding only
    record |= {
        f"model.{name}": value for name, value in model.config.to_dict().items() if name not in _CHANGED_BY_LIBRARY
    }
    record["dtype"] = next(model.parameters()).dtype
    if isinstance(train_dataset, EncodedRows):
        record["texts"] = _digest(*(part for row in train_dataset for part in (row["input_ids"], row["predicted"])))
    file = args.entities_file
    record["entities"] = None if file is None else _digest(read_text(file))
    record["adapters"] = sorted(getattr(model, "peft_config", ()))
    if record["adapters"]:
        for name, adapter in model.peft_config.items():
            options = {option: value for option, value in adapter.to_dict().items() if option not in _WHERE}
            record |= {f"adapters.{name}.{option}": value for option, value in options.items()}
    frozen = bool(record["adapters"])
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    record["frozen_weights" if frozen else _INITIAL_WEIGHTS] = _digest(
        *(_sample(weight) for weight in weights if weight.requires_grad != frozen)
    )
    return json.loads(json.dumps(record, default=_plain))


# Of a model's configuration: what transformers writes when it saves or trains one. The Trainer takes the ids of the
# special tokens from the tokenizer.
_CHANGED_BY_LIBRARY = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
# Where an adapter's base lies, and what PEFT writes about itself.
_WHERE = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record into a checkpoint."""
    write_json(folder / RECORD, record)


def check_record(checkpoint: Path, record: Mapping[str, Any]) -> None:
    """Raise an error if a checkpoint was trained with something else.

    Raises:
        ValueError: there are differences, all of which the message lists.
    """
    file = checkpoint / RECORD
    if not file.exists():
        logger.warning(f"{checkpoint} does not say what it was trained with, so a difference would go unnoticed")
        return
    then, now = read_json(file, "delete it to go on without this check"), dict(record)
    if now.pop(_INITIAL_WEIGHTS, None) != then.get(_INITIAL_WEIGHTS):  # they may be those of the checkpoint, say
        logger.warning(f"{checkpoint} began with other weights than this model has; it goes on with its own")
    # An option, or a field of a configuration, may be younger than the checkpoint.
    shared = {name: value for name, value in now.items() if name in then}
    if changed := differences(then, shared, _SENTENCES):
        raise ValueError(
            f"{checkpoint} was trained with something else ({changed}); give what was given then, or name another "
            f"output_dir and start from these weights with model {checkpoint}"
        )


def _sample(weight: nn.Parameter) -> Tensor | None:
    """Return some numbers of a tensor. All processes of a sharded one must call this, because they gather it."""
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    if whole.is_meta:  # FSDP may load the weights in the first process only
        return None
    flat = whole.detach().flatten()
    # A copy, because FSDP could not free a tensor whose memory NumPy has seen.
    return flat[:: max(1, len(flat) // _SAMPLE)].to("cpu", torch.float32, copy=True)


def _digest(*parts: Any) -> str:
    """Return the SHA-256 of texts and tensors; None, which stands for a tensor, counts, too."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else b"" if part is None else part.numpy().tobytes()
        found.update(f"{len(content)}:".encode() + content)
    return found.hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(getattr(value, "value", value))
