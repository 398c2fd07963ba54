"""`BicoTrainer` on a two-layer Llama: losses against stock models and plain arithmetic, and runs against each other."""

import json
import math
from pathlib import Path

import pytest
import torch
from devices import needs_compiled
from peft import LoraConfig
from tiny_training import BOS, EOS, PAD, SPECIAL, VOCABULARY, config, logged, some_rows, tiny_llama, train
from torch import Generator, tensor
from torch.nn.functional import log_softmax
from transformers import BloomConfig, BloomForCausalLM, LlamaForCausalLM

from bico_ext.models.attach import detach
from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.objectives import registry
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence
from bico_ext.seeding import stream_seed
from bico_ext.training.trainer import BicoTrainer


def weights(trainer: BicoTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def negative_log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Sum -log p(labels[i + 1] | output i) over one row in fp64; return the sum and the number of labels."""
    scored = [i for i in range(1, len(labels)) if labels[i] != NO_LOSS]
    return -sum(log_softmax(logits[i - 1].double(), -1)[labels[i]].item() for i in scored), len(scored)


def training_sequence(objective: str, input_ids: list[int], mask_rate: float, *key: int | str) -> TrainingSequence:
    generator = Generator().manual_seed(stream_seed(*key))
    options = {"placeholder_id": PAD, "special_ids": SPECIAL, "mask_rate": mask_rate}
    return registry.bind(objective, **options)(tensor(input_ids), generator)


def expected_loss(trainer: BicoTrainer, objective: str, rows: list[dict], *key: int | str) -> float:
    """Return the mean over all labels of the rows. Each row runs on its own, without padding or batch."""
    total = count = 0
    for index, row in enumerate(rows):
        sequence = training_sequence(objective, row["input_ids"], trainer.args.mask_rate, *key, index)
        with torch.no_grad():
            logits = trainer.model(input_ids=sequence.input_ids[None], span_ids=sequence.span_ids[None]).logits[0]
        loss, labels = negative_log_likelihood(logits, sequence.labels)
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
    # SGD, because Adam's first steps amplify rounding to the size of the learning rate where a gradient is nearly zero.
    common = {"objective": objective, "optim": "sgd"}
    single = train(tmp_path / "1x8", **common)
    split = train(tmp_path / "4x2", per_device_train_batch_size=2, gradient_accumulation_steps=4, **common)
    assert logged(split) == pytest.approx(logged(single), rel=1e-5)
    assert logged(split, "grad_norm") == pytest.approx(logged(single, "grad_norm"), rel=1e-4)
    assert logged(split, f"loss_{objective}") == pytest.approx(logged(single, f"loss_{objective}"), rel=1e-5)
    assert len(logged(split, "loss_ntp")) == len(logged(single, "loss_ntp")) > 0
    torch.testing.assert_close(weights(split), weights(single), rtol=1e-3, atol=1e-5)


@needs_compiled
def test_both_backends_train_alike(tmp_path: Path, monkeypatch):
    losses = []
    for backend in ("compiled", "portable"):
        monkeypatch.setenv("BICO_BACKEND", backend)
        losses.append(logged(train(tmp_path / backend, objective="infill")))
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_bfloat16_autocast_on_the_cpu(tmp_path: Path):
    exact = train(tmp_path / "fp32", learning_rate=0.0)
    rounded = train(tmp_path / "bf16", learning_rate=0.0, bf16=True)
    assert logged(rounded) != logged(exact)
    assert logged(rounded) == pytest.approx(logged(exact), rel=0.05)
    assert next(rounded.model.parameters()).dtype == torch.float32


# A run


@pytest.mark.parametrize("step", [7, 10])  # an epoch has 5 steps: within the second epoch, and at its end
@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_resumed_run_is_bit_equal(tmp_path: Path, order: str, step: int):
    """LoRA dropout makes the random state in the checkpoint matter, too."""
    changes = {
        "max_steps": 13,
        "save_steps": step,
        "save_strategy": "steps",
        "train_sampling_strategy": order,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "peft_config": LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.3, init_lora_weights=False),
    }
    uninterrupted = train(tmp_path, **changes)
    torch.rand(3)  # a second process would have another global random state
    resumed = train(tmp_path, resume=str(tmp_path / f"checkpoint-{step}"), **changes)
    assert weights(resumed).equal(weights(uninterrupted))
    for key in ("loss", "loss_ntp", "loss_bico", "grad_norm"):
        assert logged(resumed, key) == logged(uninterrupted, key)
    assert len(logged(uninterrupted)) == 13


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


def test_hidden_tokens_change_from_step_to_step_and_from_seed_to_seed(tmp_path: Path):
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


def test_a_model_without_rotary_positions_is_refused(tmp_path: Path):
    """Bloom's configuration names no context length, either: it ended with an AttributeError."""
    bloom = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(TypeError, match=r"BloomForCausalLM has 1 layers but 0 attention modules .* needs rotary pos"):
        BicoTrainer(bloom, config(tmp_path), some_rows())


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


def test_a_generation_config_that_transformers_refuses_to_write_costs_no_weights(tmp_path: Path):
    """That of Llama 2: temperature and top_p without sampling. The Trainer adds the tokenizer's padding id to it."""
    tokenizer = train_word_tokenizer(["w0 w1 w2"])
    tiny_llama().save_pretrained(tmp_path / "base")
    published = {"bos_token_id": BOS, "eos_token_id": EOS, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(published))
    args = config(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    trainer = BicoTrainer(str(tmp_path / "base"), args, some_rows(), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        loaded = LlamaForCausalLM.from_pretrained(folder)
        assert all(weight.equal(loaded.state_dict()[name]) for name, weight in trainer.model.state_dict().items())
        saved = json.loads((folder / "generation_config.json").read_text())
        assert (saved["temperature"], saved["top_p"], saved["max_length"]) == (0.6, 0.9, 4096)
        assert saved["pad_token_id"] == tokenizer.pad_token_id
        assert "do_sample" not in saved
    assert trainer.model.generation_config.top_p == 0.9


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


def test_evaluation_during_training_and_by_dataset_name(tmp_path: Path):
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


def test_adapters_cannot_be_combined_with_new_tokens(tmp_path: Path):
    tokenizer = train_word_tokenizer([" ".join(f"w{i}" for i in range(VOCABULARY - 4))])  # as many ids as the model has
    adapters = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    with pytest.raises(
        ValueError, match=r"objective='new-token' added tokens .* neither train nor save; add them first"
    ):
        BicoTrainer(
            tiny_llama(),
            config(tmp_path, objective="new-token"),
            [{"text": "w0 w1 w2"}],
            processing_class=tokenizer,
            peft_config=adapters,
        )


@pytest.mark.parametrize("objective", ["abi", "new-token"])
def test_objectives_that_add_tokens_are_built_twice_with_one_tokenizer(tmp_path: Path, objective: str):
    tokenizer = train_word_tokenizer(["Ada wrote it."])
    for _ in range(2):
        model = tiny_llama()
        model.resize_token_embeddings(len(train_word_tokenizer(["Ada wrote it."])))
        args = config(tmp_path, objective=objective, max_steps=1, mixing_probability=1.0)
        trainer = BicoTrainer(model, args, [{"text": "Ada wrote it."}], processing_class=tokenizer)
        trainer.train()
        assert math.isfinite(logged(trainer)[0])
        assert model.config.vocab_size == len(tokenizer)
