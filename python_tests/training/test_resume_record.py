"""A checkpoint says what it was trained with, and refuses to be resumed with something else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_training import BOS, EOS, config, some_rows, tiny_llama, train, write_facts_and_model

from bico_ext.facts.loader import load_facts
from bico_ext.models import checkpoints
from bico_ext.training.resume_record import RECORD
from bico_ext.training.trainer import BicoTrainer

STEPS: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(train(tmp_path_factory.mktemp("begun"), **STEPS).args.output_dir)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "infill"}, "objective 'bico' -> 'infill'"),
        ({"mask_rate": 0.3}, "mask_rate 0.15 -> 0.3"),
        ({"seed": 1}, "seed 42 -> 1"),
        ({"learning_rate": 1e-3}, "learning_rate 0.01 -> 0.001"),
        ({"per_device_train_batch_size": 4}, "batch 8 -> 4"),
        ({"max_steps": 4}, "max_steps 2 -> 4"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type 'linear' -> 'cosine'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_arguments_are_refused(begun: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"checkpoint-1 was trained with something else ({said});")):
        train(begun, resume=str(begun / "checkpoint-1"), **{**STEPS, **changes})


def test_every_difference_and_the_way_out_are_named(begun: Path) -> None:
    model = tiny_llama()
    model.config.rms_norm_eps = 1e-3
    arguments = config(begun, **STEPS, seed=1)
    trainer = BicoTrainer(model, arguments, [*some_rows(39), {"input_ids": [BOS, 7, EOS]}])
    with pytest.raises(ValueError, match="something else") as refused:
        trainer.train(resume_from_checkpoint=True)
    checkpoint = begun / "checkpoint-2"
    assert str(refused.value) == (
        f"{checkpoint} was trained with something else (seed 42 -> 1, model.rms_norm_eps 1e-06 -> 0.001, the "
        "training texts have changed); give what was given then, or name another output_dir and start from these "
        f"weights with model {checkpoint}"
    )


def test_another_model_of_the_same_shape_is_said_not_to_be_read(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its weights are replaced by those of the checkpoint, so the result is that of going on."""
    model = tiny_llama()
    model.lm_head.weight.data += 1
    trainer = BicoTrainer(model, config(begun, **STEPS), some_rows())
    trainer.train(resume_from_checkpoint=str(begun / "checkpoint-1"))
    said = f"{begun / 'checkpoint-1'} began with other weights than this model has; it goes on with its own"
    assert said in caplog.messages


def test_what_changes_nothing_but_rounding_may_change(begun: Path) -> None:
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "packing": True}
    changes |= {"save_steps": 2, "logging_steps": 2, "optim": "adamw_torch"}  # not fused
    resumed = train(begun, resume=str(begun / "checkpoint-1"), **{**STEPS, **changes})
    assert resumed.state.global_step == 2


def test_a_model_that_the_trainer_has_seen_is_the_same(tmp_path: Path) -> None:
    """Training gives the model's configuration the special tokens of the tokenizer, as in a notebook's second run."""
    write_facts_and_model(tmp_path)
    model, tokenizer = checkpoints.load(tmp_path / "model")
    model.config.eos_token_id = 5
    rows = load_facts(tmp_path / "facts").train
    for resume in (None, True):
        trainer = BicoTrainer(model, config(tmp_path / "out", **STEPS), rows, processing_class=tokenizer)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 2
    assert model.config.eos_token_id == tokenizer.eos_token_id != 5


def test_a_warmup_that_is_a_share_of_the_run_fixes_its_length(tmp_path: Path) -> None:
    changes = {**STEPS, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5}
    train(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"something else \(max_steps 2 -> 4\)"):
        train(tmp_path, resume=True, **{**changes, "max_steps": 4})


def test_a_run_at_a_constant_rate_may_become_longer(tmp_path: Path) -> None:
    changes = {**STEPS, "lr_scheduler_type": "constant"}
    train(tmp_path, **changes)
    longer, whole = (
        train(folder, resume=resume, **{**changes, "max_steps": 3}).model.state_dict()
        for folder, resume in ((tmp_path, True), (tmp_path / "whole", None))
    )
    assert all(torch.equal(weight, whole[name]) for name, weight in longer.items())


def test_adapters_are_resumed_on_the_same_base_only(tmp_path: Path) -> None:
    """A checkpoint of adapters holds neither the base nor what scales them."""

    def resumed(alpha: int, shift: float = 0) -> BicoTrainer:
        model, adapters = tiny_llama(), LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=alpha)
        model.model.norm.weight.data += shift
        trainer = BicoTrainer(model, config(tmp_path, **STEPS), some_rows(), peft_config=adapters)
        trainer.train(resume_from_checkpoint=(tmp_path / "checkpoint-1").exists())
        return trainer

    resumed(alpha=4)
    resumed(alpha=4)
    with pytest.raises(ValueError, match=r"\(adapters.default.lora_alpha 4 -> 8\)"):
        resumed(alpha=8)
    with pytest.raises(ValueError, match=r"\(the weights under the adapters have changed\)"):
        resumed(alpha=4, shift=1e-3)


def test_words_of_an_entities_file_count_and_not_its_place(tmp_path: Path) -> None:
    from tiny_training import write_facts_and_model

    from bico_ext.cli.main import main

    write_facts_and_model(tmp_path)
    (tmp_path / "one.txt").write_text("Daphne\n")
    (tmp_path / "moved.txt").write_text("Daphne\n")
    (tmp_path / "other.txt").write_text("Uriah\n")
    command = ["train", "--data", str(tmp_path / "facts"), "--model", str(tmp_path / "model"), "--objective", "reverse"]
    command += ["--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--save_steps", "1", "--use_cpu"]
    command += ["--report_to", "none", "--disable_tqdm", "true", "--entities_file"]
    assert main([*command, str(tmp_path / "one.txt")]) == 0
    assert main([*command, str(tmp_path / "moved.txt"), "--resume"]) == 0
    before = sorted((tmp_path / "out").rglob("*"))
    assert main([*command, str(tmp_path / "other.txt"), "--resume"]) == 1
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, **STEPS)
    record = tmp_path / "checkpoint-1" / RECORD
    assert json.loads(record.read_text())["learning_rate"] == 1e-2
    record.unlink()
    train(tmp_path, resume=str(record.parent), **{**STEPS, "seed": 1})
    (line,) = [message for message in caplog.messages if "does not say" in message]
    assert line == f"{record.parent} does not say what it was trained with, so a difference would go unnoticed"
