"""Logits only where there are labels: losses and gradients against transformers' own loss on the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import relative, tiny_family
from tiny_training import PAD, SPECIAL, VOCABULARY, config, some_rows, tiny_llama
from torch import Generator, Tensor, tensor
from transformers.trainer_pt_utils import LabelSmoother

from bico_ext.models.attach import attach
from bico_ext.objectives import registry
from bico_ext.objectives.training_sequence import NO_LOSS, labelled_only, pad
from bico_ext.training.trainer import BicoTrainer

OPTIONS: dict[str, Any] = {
    "placeholder_id": PAD,
    "special_ids": SPECIAL,
    "mask_rate": 0.3,
    "mask_id": 4,
    "sop_id": 5,
    "eop_id": 6,
    "positions": "2d",
    "spans": 1,
    "segments": 3,
    "word_starts": torch.ones(VOCABULARY, dtype=torch.bool),
    "word_parts": torch.zeros(VOCABULARY, dtype=torch.bool),
    "entities": [],
    "separator_id": 7,
    "segment_length": 3,
}


def whole_batch(objective: str) -> dict[str, Any]:
    apply, generator = registry.bind(objective, **OPTIONS), Generator().manual_seed(3)
    return pad([apply(tensor(row["input_ids"]), generator) for row in some_rows(6)], PAD)


def loss_and_gradients(model: Any, batch: dict[str, Any], **arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**batch, **arguments).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    ours: tuple[Tensor, dict[str, Tensor]], stock: tuple[Tensor, dict[str, Tensor]], tolerance: float = 1e-6
) -> None:
    torch.testing.assert_close(ours[0], stock[0], rtol=1e-6, atol=0)
    assert ours[1].keys() == stock[1].keys()
    for name, gradient in stock[1].items():
        assert relative(ours[1][name], gradient) < tolerance, name


@pytest.mark.parametrize("objective", registry.OBJECTIVES)
@pytest.mark.parametrize("arguments", [{}, {"num_items_in_batch": tensor(57)}], ids=["mean", "accumulated"])
def test_loss_and_gradients_are_those_of_all_outputs(objective: str, arguments: dict[str, Any]):
    batch, model = whole_batch(objective), attach(tiny_llama())
    assert 0 < batch["labels"].ne(NO_LOSS).sum() < batch["labels"].numel()
    assert_same(
        loss_and_gradients(model, labelled_only(batch), **arguments), loss_and_gradients(model, batch, **arguments)
    )


def test_next_token_prediction_is_that_of_the_stock_model():
    batch = whole_batch("ntp")
    ours = loss_and_gradients(attach(tiny_llama()), labelled_only(batch))
    stock = {**batch, "attention_mask": batch["span_ids"].ge(0).long()}
    del stock["span_ids"]
    assert_same(ours, loss_and_gradients(tiny_llama(), stock), tolerance=1e-5)  # two kernels of attention


@pytest.mark.parametrize(
    ("family", "after_the_head"),
    [
        ("granite", {"logits_scaling": 3.0, "attention_multiplier": 0.1}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 0.5, "attn_logit_softcapping": None}),
    ],
)
def test_what_a_model_does_after_its_head_is_kept(family: str, after_the_head: dict[str, Any]):
    if family == "gemma2":
        after_the_head["layer_types"] = ["full_attention"] * 4
    model, batch = attach(tiny_family(family, **after_the_head)), whole_batch("bico")
    with torch.no_grad():
        outputs = model(**labelled_only(batch)).logits
        all_outputs = model(**batch).logits
    places = labelled_only(batch)["output_positions"]
    torch.testing.assert_close(outputs[0], all_outputs.flatten(0, 1)[places], rtol=1e-5, atol=1e-6)
    assert_same(loss_and_gradients(model, labelled_only(batch)), loss_and_gradients(model, batch))


def test_adapters_on_the_head():
    adapters = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model, batch = attach(get_peft_model(tiny_llama(), adapters)), whole_batch("infill")
    ours = loss_and_gradients(model, labelled_only(batch))
    assert any("lm_head.lora_A" in name for name in ours[1])
    assert_same(ours, loss_and_gradients(model, batch))


def test_rows_without_labels_and_a_label_that_nothing_predicts():
    batch = whole_batch("ntp")
    batch["labels"][1] = NO_LOSS
    batch["labels"][:, 0] = 7  # the model's own loss drops it, too
    model = attach(tiny_llama())
    assert_same(loss_and_gradients(model, labelled_only(batch)), loss_and_gradients(model, batch))


def test_a_training_step_computes_logits_for_labels_only(tmp_path: Path):
    model, rows = tiny_llama(), []
    model.lm_head.register_forward_hook(lambda _module, _args, logits: rows.append(logits.shape[:-1].numel()))
    trainer = BicoTrainer(model, config(tmp_path, objective="bico", mixing_probability=1.0, max_steps=1), some_rows(8))
    rows.clear()  # of the proof
    labels = []
    count = trainer._get_num_items_in_batch
    trainer._get_num_items_in_batch = lambda *args: labels.append(int(count(*args))) or count(*args)
    trainer.train()
    assert rows[-1] == labels[0] + 1  # the last output predicts nothing


def test_label_smoothing(tmp_path: Path):
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, label_smoothing_factor=0.2), some_rows())
    batch = whole_batch("bico")
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, labelled_only(batch))
        labels = batch.pop("labels")
        expected = LabelSmoother(0.2)(trainer.model(**batch), labels, shift_labels=True)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_data_parallel_gets_whole_rows(tmp_path: Path):
    trainer = BicoTrainer(tiny_llama(), config(tmp_path), some_rows())
    trainer.args._n_gpu = 2  # DataParallel cuts each tensor of a batch along its first dimension
    ((batch,), _) = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    assert {len(value) for value in batch.values() if isinstance(value, Tensor)} == {8}


def test_metrics_do_not_change_the_evaluation_losses(tmp_path: Path):
    def losses(folder: Path, **metrics: Any) -> dict[str, float]:
        trainer = BicoTrainer(tiny_llama(), config(folder), eval_dataset=some_rows(10), **metrics)
        return {name: value for name, value in trainer.evaluate().items() if name.endswith("loss")}

    alone = losses(tmp_path / "alone")
    assert set(alone) == {"eval_loss", "eval_bico_loss"}
    assert losses(tmp_path / "metrics", compute_metrics=lambda _: {}) == pytest.approx(alone, rel=1e-6)


def test_every_row_keeps_its_own_losses(tmp_path: Path):
    """Ranks may share rows, so the sum over a batch is not enough."""

    def row_losses(batch_size: int) -> dict[str, dict[int, tuple[float, int]]]:
        args = config(tmp_path, per_device_eval_batch_size=batch_size)
        trainer = BicoTrainer(tiny_llama(), args, eval_dataset=some_rows(10))
        trainer.evaluate()
        return trainer._row_losses

    together, alone = row_losses(4), row_losses(1)
    for objective, losses in alone.items():
        for row, (loss, labels) in losses.items():
            assert together[objective][row] == (pytest.approx(loss, rel=1e-5), labels)
