"""BicoTrainer on a two-layer Llama: losses against stock models and plain arithmetic, runs against each other."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Generator, tensor
from torch.nn.functional import log_softmax
from torch.utils.data import Dataset, IterableDataset
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, TrainingArguments

from bico_ext import objectives
from bico_ext.models import detach
from bico_ext.rows import LengthGroupedSampler
from bico_ext.tokenization import train_word_tokenizer
from bico_ext.trainer import BicoConfig, BicoTrainer

PAD, BOS, EOS, VOCABULARY, CONTEXT = 0, 2, 3, 40, 32
SPECIAL = (PAD, BOS, EOS)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            initializer_range=0.5,  # far from uniform predictions, so that a wrong mask shows in the loss
        )
    )


def some_rows(count: int = 40) -> list[dict[str, list[int]]]:
    generator = Generator().manual_seed(1)
    lengths = torch.randint(2, 14, (count,), generator=generator).tolist()
    middles = [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": [BOS, *middle, EOS]} for middle in middles]


def config(folder: Path, **changes: Any) -> BicoConfig:
    fields = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "placeholder_id": PAD,
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
    }
    return BicoConfig(**{**fields, **changes})


def train(
    folder: Path, resume: str | None = None, peft_config: LoraConfig | None = None, **changes: Any
) -> BicoTrainer:
    trainer = BicoTrainer(tiny_llama(), config(folder, **changes), some_rows(), peft_config=peft_config)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer: BicoTrainer, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer: BicoTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def negative_log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Of one row: the sum over the labels that output i gives to labels[i + 1], and their number, in fp64."""
    scored = [i for i in range(1, len(labels)) if labels[i] != objectives.NO_LOSS]
    return -sum(log_softmax(logits[i - 1].double(), -1)[labels[i]].item() for i in scored), len(scored)


def masked_row(objective: str, input_ids: list[int], mask_rate: float, *key: int | str) -> objectives.Masked:
    generator = Generator().manual_seed(objectives.stream_seed(*key))
    options = {"placeholder_id": PAD, "special_ids": SPECIAL, "mask_rate": mask_rate}
    return objectives.bind(objective, **options)(tensor(input_ids), generator)


def expected_loss(trainer: BicoTrainer, objective: str, rows: list[dict], *key: int | str) -> float:
    """The mean over all labels of the rows, each run on its own: no padding, no batch."""
    total = count = 0
    for place, row in enumerate(rows):
        masked = masked_row(objective, row["input_ids"], trainer.args.mask_rate, *key, place)
        with torch.no_grad():
            logits = trainer.model(input_ids=masked.input_ids[None], span_ids=masked.span_ids[None]).logits[0]
        loss, labels = negative_log_likelihood(logits, masked.labels)
        total, count = total + loss, count + labels
    return total / count


# One optimizer step


def test_first_ntp_loss_is_that_of_the_stock_model(tmp_path: Path):
    trainer = train(tmp_path, objective="ntp", max_steps=1, train_sampling_strategy="sequential")
    stock, total, count = tiny_llama().eval(), 0.0, 0
    for row in some_rows()[:8]:
        input_ids = tensor(row["input_ids"])
        with torch.no_grad():
            loss, labels = negative_log_likelihood(stock(input_ids[None]).logits[0], input_ids)
        total, count = total + loss, count + labels
    assert logged(trainer) == logged(trainer, "loss_ntp") == [pytest.approx(total / count, rel=1e-6)]


@pytest.mark.parametrize("objective", ["bico", "infill"])
def test_first_loss_of_an_objective(tmp_path: Path, objective: str):
    changes = {"objective": objective, "mixing_probability": 1.0, "mask_rate": 0.4}
    trainer = train(tmp_path, max_steps=1, train_sampling_strategy="sequential", learning_rate=0.0, **changes)
    expected = expected_loss(trainer, objective, some_rows()[:8], "masks", trainer.args.seed, 0)
    assert logged(trainer) == logged(trainer, f"loss_{objective}") == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("objective", ["bico", "infill"])
def test_gradient_accumulation_changes_rounding_only(tmp_path: Path, objective: str):
    # SGD: Adam's first steps blow rounding up to the learning rate where a gradient is nearly zero.
    common = {"objective": objective, "optim": "sgd"}
    whole = train(tmp_path / "1x8", **common)
    split = train(tmp_path / "4x2", per_device_train_batch_size=2, gradient_accumulation_steps=4, **common)
    assert logged(split) == pytest.approx(logged(whole), rel=1e-5)
    assert logged(split, "grad_norm") == pytest.approx(logged(whole, "grad_norm"), rel=1e-4)
    assert logged(split, f"loss_{objective}") == pytest.approx(logged(whole, f"loss_{objective}"), rel=1e-5)
    assert len(logged(split, "loss_ntp")) == len(logged(whole, "loss_ntp")) > 0
    torch.testing.assert_close(weights(split), weights(whole), rtol=1e-3, atol=1e-5)


def test_bfloat16_autocast_on_the_cpu(tmp_path: Path):
    exact = train(tmp_path / "fp32", learning_rate=0.0)
    rounded = train(tmp_path / "bf16", learning_rate=0.0, bf16=True)
    assert logged(rounded) != logged(exact)
    assert logged(rounded) == pytest.approx(logged(exact), rel=0.05)
    assert next(rounded.model.parameters()).dtype == torch.float32


# A run


@pytest.mark.parametrize("step", [7, 10])  # 5 steps an epoch: within the second, and at its end
@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_resumed_run_is_bit_equal(tmp_path: Path, order: str, step: int):
    """With LoRA dropout, so that the random state that the checkpoint keeps matters too."""
    changes = {
        "max_steps": 13,
        "save_steps": step,
        "save_strategy": "steps",
        "train_sampling_strategy": order,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "peft_config": LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.3, init_lora_weights=False),
    }
    whole = train(tmp_path, **changes)
    torch.rand(3)  # the global random state of the second process is another one
    resumed = train(tmp_path, resume=str(tmp_path / f"checkpoint-{step}"), **changes)
    assert weights(resumed).equal(weights(whole))
    for key in ("loss", "loss_ntp", "loss_bico", "grad_norm"):
        assert logged(resumed, key) == logged(whole, key)
    assert len(logged(whole)) == 13


def test_steps_choose_their_objective_by_the_mixing_probability(tmp_path: Path):
    def choices(seed: int, probability: float, steps: int) -> list[bool]:
        trainer = train(
            tmp_path, seed=seed, mixing_probability=probability, max_steps=steps, per_device_train_batch_size=1
        )
        history = trainer.state.log_history[:steps]
        assert all(("loss_bico" in entry) != ("loss_ntp" in entry) for entry in history)
        return ["loss_bico" in entry for entry in history]

    mixed = choices(seed=1, probability=0.7, steps=200)
    assert abs(sum(mixed) / 200 - 0.7) < 4 * math.sqrt(0.7 * 0.3 / 200)
    assert mixed[:50] == choices(seed=1, probability=0.7, steps=50)
    assert mixed[:50] != choices(seed=2, probability=0.7, steps=50)
    assert not any(choices(seed=1, probability=0.0, steps=10))
    assert all(choices(seed=1, probability=1.0, steps=10))


def test_logged_losses_are_means_over_the_steps_of_their_objective(tmp_path: Path):
    changes = {"max_steps": 10, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    each = train(tmp_path / "each", **changes)
    every_fifth = train(tmp_path / "fifth", logging_steps=5, **changes)
    for key in ("loss", "loss_ntp", "loss_bico"):
        single = {entry["step"]: entry[key] for entry in each.state.log_history if key in entry}
        assert len(single) >= 2
        means = [[loss for step, loss in single.items() if first < step <= first + 5] for first in (0, 5)]
        expected = [sum(part) / len(part) for part in means if part]
        assert logged(every_fifth, key) == pytest.approx(expected, rel=1e-6)


def test_masks_change_from_step_to_step_and_from_seed_to_seed(tmp_path: Path):
    changes = {"mixing_probability": 1.0, "learning_rate": 0.0, "train_sampling_strategy": "sequential"}
    losses = [
        logged(train(tmp_path, seed=seed, per_device_train_batch_size=40, max_steps=3, **changes)) for seed in (1, 2)
    ]
    assert len({loss for run in losses for loss in run}) == 6


def test_a_nan_loss_shows(tmp_path: Path):
    model = tiny_llama()
    trainer = BicoTrainer(model, config(tmp_path, mixing_probability=0.0, max_steps=2), some_rows(), some_rows())
    with torch.no_grad():
        model.lm_head.weight[5, 0] = math.nan
    trainer.train()
    assert [math.isnan(loss) for loss in logged(trainer) + logged(trainer, "loss_ntp")] == [True] * 4
    assert math.isnan(trainer.evaluate()["eval_loss"])


def test_training_refuses_a_detached_model(tmp_path: Path):
    trainer = BicoTrainer(tiny_llama(), config(tmp_path), some_rows())
    detach(trainer.model)
    with pytest.raises(RuntimeError, match="not attached"):
        trainer.train()


def test_checkpoint_is_a_stock_llama(tmp_path: Path):
    trainer = train(tmp_path, save_strategy="steps", save_steps=6)
    folder = tmp_path / "checkpoint-6"
    loaded, report = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert set(loaded.state_dict()) == set(tiny_llama().state_dict())
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    input_ids = tensor([[BOS, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(input_ids).logits, trainer.model.eval()(input_ids).logits)


def test_lora_trains_only_its_own_weights(tmp_path: Path):
    trainer = train(tmp_path, peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    base = tiny_llama().state_dict()
    trained = trainer.model.get_base_model().state_dict()
    assert all(trained[name.replace("_proj.", "_proj.base_layer.")].equal(base[name]) for name in base)
    assert any("lora_B" in name and weight.any() for name, weight in trained.items())


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_evaluation_losses_are_means_over_tokens(tmp_path: Path, batch_size: int, order: str):
    changes = {"per_device_eval_batch_size": batch_size, "train_sampling_strategy": order, "seed": batch_size}
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, **changes), some_rows(), eval_dataset=some_rows(10))
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected_loss(trainer, "ntp", some_rows(10)), rel=1e-5)
    expected = expected_loss(trainer, "bico", some_rows(10), "evaluation masks")
    assert metrics["eval_bico_loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_during_training_and_by_name(tmp_path: Path):
    sets = {"one": some_rows(4), "two": some_rows(7)}
    args = config(tmp_path, objective="infill", eval_strategy="steps", eval_steps=3, learning_rate=0.0)
    trainer = BicoTrainer(tiny_llama(), args, some_rows(), eval_dataset=sets)
    trainer.train()
    for name, rows in sets.items():
        expected = expected_loss(trainer, "infill", rows, "evaluation masks")
        assert logged(trainer, f"eval_{name}_infill_loss") == [pytest.approx(expected, rel=1e-5)] * 2
        assert trainer.evaluate(rows)["eval_infill_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.predict(sets["two"]).metrics["test_loss"] == logged(trainer, "eval_two_loss")[0]


def test_metrics_see_the_causal_predictions(tmp_path: Path):
    seen = []
    trainer = BicoTrainer(
        tiny_llama(),
        config(tmp_path, per_device_eval_batch_size=4),
        eval_dataset=some_rows(6),
        compute_metrics=lambda prediction: seen.append(prediction) or {"rows": len(prediction.label_ids)},
    )
    assert trainer.evaluate()["eval_rows"] == 6
    row = some_rows(6)[5]["input_ids"]
    with torch.no_grad():
        expected = tiny_llama().eval()(tensor([row])).logits[0]
    torch.testing.assert_close(tensor(seen[0].predictions[5, : len(row)]), expected, rtol=1e-4, atol=1e-4)
    assert seen[0].label_ids[5, 1 : len(row)].tolist() == row[1:]


# Rows


class Numbered(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"input_ids": tensor(some_rows()[place]["input_ids"]), "unused": tensor(place)}


def test_a_torch_dataset_is_the_list_of_its_rows(tmp_path: Path):
    trainer = BicoTrainer(tiny_llama(), config(tmp_path / "torch"), Numbered())
    trainer.train()
    assert logged(trainer) == logged(train(tmp_path / "list"))


@pytest.mark.parametrize(
    "row",
    [{"text": "Ada wrote it."}, {"prompt": "Ada wrote", "completion": " it."}, {"input_ids": [2, 4, 6, 5, 7, 3]}],
)
def test_kinds_of_rows(tmp_path: Path, row: dict):
    tokenizer = train_word_tokenizer(["Ada wrote it."])
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, placeholder_id=None), [row, row], processing_class=tokenizer)
    assert [row["input_ids"].tolist() for row in trainer.train_dataset] == [[2, 4, 6, 5, 7, 3]] * 2
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer))


def test_special_tokens_and_placeholder_come_from_the_tokenizer(tmp_path: Path):
    """Every ordinary token is hidden (mask_rate 1), so the batch shows which ids are special."""
    tokenizer = train_word_tokenizer(["Ada wrote it."])
    tokenizer.pad_token = "."  # an ordinary token, id 7, as placeholder and padding
    args = config(tmp_path, placeholder_id=None, mixing_probability=1.0, mask_rate=1.0)
    trainer = BicoTrainer(tiny_llama(), args, [{"text": "Ada wrote it."}], processing_class=tokenizer)
    batches, labels = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    assert batches[0]["input_ids"].tolist() == [[2, 7, 7, 7, 7, 3]]
    assert batches[0]["span_ids"].tolist() == [[0, -1, -1, -1, 0, 0]]
    assert labels == 3


def test_model_and_tokenizer_from_a_folder(tmp_path: Path):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    train_word_tokenizer(["Ada wrote it."]).save_pretrained(tmp_path / "model")
    trainer = BicoTrainer(str(tmp_path / "model"), config(tmp_path), [{"text": "Ada wrote it."}])
    trainer.train()
    assert next(trainer.model.parameters()).dtype == torch.float32
    assert len(logged(trainer)) == 6


def test_max_length_cuts_rows(tmp_path: Path):
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, max_length=4), some_rows())
    assert [row["input_ids"].tolist() for row in trainer.train_dataset] == [row["input_ids"][:4] for row in some_rows()]


def test_grouping_by_length(tmp_path: Path):
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    args = config(tmp_path, train_sampling_strategy="group_by_length", **changes)
    trainer = BicoTrainer(tiny_llama(), args, some_rows())
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append([rows.places for rows in loader])
    assert sorted(place for places in epochs[0] for place in places) == list(range(40))
    assert epochs[0] == epochs[2] != epochs[1]


def test_grouped_batches_are_alike_in_length_and_in_random_order():
    lengths = torch.randint(5, 60, (1010,), generator=Generator().manual_seed(0)).tolist()
    places = list(LengthGroupedSampler(lengths, batch_size=16, seed=0))
    assert sorted(places) == list(range(1010))
    batches = [[lengths[place] for place in places[i : i + 16]] for i in range(0, 1010, 16)]
    assert len(batches[-1]) == 1010 % 16
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)  # 1.8 in random order
    longest = [max(batch) for batch in batches]
    rises = sum(after > before for before, after in pairwise(longest))
    assert rises > 20  # the stock order falls, but for its 3 restarts


# Refusals


def constructed(tmp_path: Path, rows: Any, model: Any = None, **changes: Any) -> BicoTrainer:
    return BicoTrainer(tiny_llama() if model is None else model, config(tmp_path, **changes), rows)


LONG = {"input_ids": [BOS, *[7] * CONTEXT]}
GOOD = {"input_ids": [BOS, 7, 8, EOS]}


class Stream(IterableDataset):
    def __iter__(self):
        yield GOOD


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "train_dataset is empty"),
        (Stream(), TypeError, "train_dataset must be .* known length, got Stream; read a stream into a list"),
        ("rows.jsonl", TypeError, "got str"),
        ({"train": [GOOD]}, TypeError, "got dict"),
        ([GOOD, LONG], ValueError, r"train_dataset\[1\] has 33 tokens, but the model's context is 32"),
        ([GOOD, {"input_ids": [BOS]}], ValueError, r"train_dataset\[1\] has nothing to predict"),
        ([GOOD, {"input_ids": [7, BOS, EOS]}], ValueError, r"train_dataset\[1\] has nothing to predict"),
        ([{"input_ids": []}], ValueError, r"train_dataset\[0\] has nothing to predict"),
        ([{"input_ids": [BOS, 7, VOCABULARY]}], ValueError, r"\[0\]: ids must be in \[0, 40\), .* got 2 to 40"),
        ([{"input_ids": [BOS, -1, 7]}], ValueError, r"\[0\]: ids must be in \[0, 40\), .* got -1 to 7"),
        ([{"input_ids": [[BOS, 7]]}], ValueError, r"one sequence, got the shape \[1, 2\]"),
        ([{"prompt": "Ada"}], ValueError, r"'prompt' and 'completion', got \['prompt'\]"),
        (["Ada wrote it."], ValueError, r"train_dataset\[0\] must be a dict .* got str"),
        ([{"text": "Ada wrote it."}], ValueError, r"train_dataset\[0\] is text, which needs processing_class"),
    ],
)
def test_rows_refused(tmp_path: Path, rows: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        constructed(tmp_path, rows)


def test_a_row_of_special_tokens_is_fine_where_they_are_predicted(tmp_path: Path):
    assert constructed(tmp_path, [{"input_ids": [7, BOS, EOS]}], objective="infill").train_dataset
    with pytest.raises(ValueError, match="nothing to predict"):
        constructed(tmp_path, [{"input_ids": [BOS]}], objective="infill")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "mlm"}, "objective must be one of 'ntp', 'bico', 'infill', got 'mlm'"),
        ({"mask_rate": 0.0}, r"mask_rate must be in \(0, 1\], got 0.0"),
        ({"mixing_probability": 1.5}, r"mixing_probability must be in \[0, 1\], got 1.5"),
        ({"mixing_probability": math.nan}, "mixing_probability must be in"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False"),
        ({"placeholder_id": VOCABULARY}, r"placeholder_id must be in \[0, 40\), the model's ids, got 40"),
        ({"placeholder_id": None}, "placeholder_id is needed .* set placeholder_id=0"),
    ],
)
def test_arguments_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        constructed(tmp_path, [GOOD], **changes)


def test_plain_training_arguments_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="args must be a BicoConfig, got TrainingArguments"):
        BicoTrainer(tiny_llama(), TrainingArguments(str(tmp_path)), [GOOD])


def test_config_parses_from_a_command_line(tmp_path: Path):
    command = f"--output_dir {tmp_path} --objective infill --mask_rate 0.3 --placeholder_id 5 --use_cpu".split()
    (args,) = HfArgumentParser(BicoConfig).parse_args_into_dataclasses(command)
    assert (args.objective, args.mask_rate, args.placeholder_id) == ("infill", 0.3, 5)
    assert (args.mixing_probability, args.max_length) == (0.5, None)
    assert (args.remove_unused_columns, args.logging_nan_inf_filter, args.logging_steps) == (False, False, 10)
