"""Micro-batches packed into one row: losses, gradients and runs against those of padded batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from test_labelled_outputs import OPTIONS, loss_and_gradients
from tiny_models import relative
from tiny_training import PAD, config, logged, some_rows, tiny_llama, train
from torch import Generator, tensor

from bico_ext.models.attach import attach, detach
from bico_ext.objectives import registry
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, labelled_only, pack, pad
from bico_ext.training.trainer import BicoTrainer

# Losses and gradients are sums over at most a hundred tokens, which the two layouts add in different orders. That costs
# a few machine epsilons in each of some ten operations; a wrong mask, position or label costs more than 1e-3.
TOLERANCE = 64 * torch.finfo(torch.float32).eps  # 8e-6


def sequences(objective: str, **options: Any) -> list[TrainingSequence]:
    apply, generator = registry.bind(objective, **OPTIONS | options), Generator().manual_seed(3)
    return [apply(tensor(row["input_ids"]), generator) for row in some_rows(6)]


@pytest.mark.parametrize("labels_only", [False, True], ids=["all-outputs", "labelled-outputs"])
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        *((name, {}) for name in registry.OBJECTIVES),
        ("abi", {"positions": "in-place"}),
        ("infill", {"spans": 2}),  # span ids 1 and 2 in every sequence
    ],
)
def test_loss_and_gradients_are_those_of_padding(objective: str, options: dict[str, Any], labels_only: bool):
    rows, model = sequences(objective, **options), attach(tiny_llama())
    packed, padded = pack(rows), pad(rows, PAD)
    assert packed["input_ids"].numel() < padded["input_ids"].numel()
    assert (
        packed.get("mirror", True) == padded.get("mirror", True) == (objective not in ("naive", "infill-naive", "abi"))
    )
    loss, gradients = loss_and_gradients(model, labelled_only(packed) if labels_only else packed)
    expected_loss, expected_gradients = loss_and_gradients(model, padded)
    torch.testing.assert_close(loss, expected_loss, rtol=TOLERANCE, atol=0)
    for name, gradient in expected_gradients.items():
        assert relative(gradients[name], gradient) < TOLERANCE, name


def test_a_label_at_the_start_of_a_sequence_is_dropped():
    """Otherwise the last output of the sequence before it would predict it."""
    ids, spans = tensor([7, 8, 9]), torch.ones(3, dtype=torch.int32)
    row = TrainingSequence(ids, ids.clone(), spans)
    model = attach(tiny_llama())
    packed, padded = pack([row, row]), pad([row, row], PAD)
    assert packed["labels"].tolist() == [[NO_LOSS, 8, 9, NO_LOSS, 8, 9]]
    assert row.labels.tolist() == [7, 8, 9]
    torch.testing.assert_close(model(**packed).loss, model(**padded).loss, rtol=TOLERANCE, atol=0)


# A run


@pytest.mark.parametrize("objective", ["ntp", "bico", "naive", "infill", "permute"])
def test_the_losses_of_a_run_are_those_of_padding(tmp_path: Path, objective: str):
    # SGD, because Adam's first steps amplify rounding to the size of the learning rate where a gradient is nearly zero.
    common = {"objective": objective, "optim": "sgd", "max_steps": 8}
    padded, packed = (train(tmp_path / str(packing), packing=packing, **common) for packing in (False, True))
    assert len(logged(padded)) == 8
    for key in ("loss", "loss_ntp", f"loss_{objective}", "grad_norm"):
        assert logged(packed, key) == pytest.approx(logged(padded, key), rel=1e-4 if key == "grad_norm" else 1e-5)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, 1e-5),
        ({"gradient_checkpointing": True}, 1e-5),
        ({"train_sampling_strategy": "group_by_length"}, 1e-5),
        (
            {"peft_config": LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)},
            1e-5,
        ),
        ({"bf16": True}, 0.02),  # a few roundings to 8 bits
    ],
    ids=["accumulation", "checkpointing", "grouped", "lora", "bf16"],
)
def test_packing_goes_with(tmp_path: Path, changes: dict[str, Any], tolerance: float):
    common = {"optim": "sgd", **changes}
    padded, packed = (train(tmp_path / str(packing), packing=packing, **common) for packing in (False, True))
    for key in ("loss", "loss_ntp", "loss_bico"):
        assert logged(packed, key) == pytest.approx(logged(padded, key), rel=tolerance)


def test_a_step_gets_one_row_per_micro_batch_and_the_number_of_its_labels(tmp_path: Path):
    args = config(tmp_path, packing=True, mixing_probability=0.0, train_sampling_strategy="sequential")
    trainer = BicoTrainer(tiny_llama(), args, some_rows())
    loader = iter(trainer.get_train_dataloader())
    for micro_batches, first in ((2, 0), (1, 16)):
        batches, labels = trainer.get_batch_samples(loader, micro_batches, torch.device("cpu"))
        taken = [row["input_ids"] for row in some_rows()[first : first + 8 * micro_batches]]
        assert [len(batch["cu_seq_lens_q"]) for batch in batches] == [9] * micro_batches
        assert torch.cat([batch["input_ids"][0] for batch in batches]).equal(torch.cat(list(map(tensor, taken))))
        assert labels == sum(len(ids) - 1 for ids in taken)  # every token but the first of each sequence


def test_evaluation_pads_as_without_packing(tmp_path: Path):
    trainers = [
        BicoTrainer(tiny_llama(), config(tmp_path, packing=packing), eval_dataset=some_rows(10))
        for packing in (False, True)
    ]
    losses = [[value for name, value in trainer.evaluate().items() if name.endswith("loss")] for trainer in trainers]
    assert losses[0] == losses[1]


def test_data_parallel_cannot_divide_a_packed_batch(tmp_path: Path):
    model, args = tiny_llama(), config(tmp_path, packing=True)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"packing=True .* DataParallel cannot divide among 2 GPUs; .* torchrun"):
        BicoTrainer(model, args, some_rows())
    with pytest.raises(RuntimeError, match="not attached"):
        detach(model)
