"""A trained model that is being written is not yet a model, and does not harm the one that was there before."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import config, some_rows, tiny_llama, train, write_facts_and_model
from transformers import LlamaForCausalLM, Trainer

from bico_ext.cli.main import main
from bico_ext.models import checkpoints
from bico_ext.training.complete_checkpoints import unfinished_model
from bico_ext.training.trainer import BicoTrainer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_save_that_is_killed_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It looked like a model, whose weights were cut, and had replaced the earlier one."""
    trainer = train(tmp_path)
    write = Trainer._save

    def write_and_die(self, *arguments):
        write(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            trainer.save_model()
    assert names(tmp_path) == ["_unfinished"]
    with pytest.raises(FileNotFoundError, match=r"folder without a config\.json"):
        checkpoints.load(tmp_path)
    trainer.save_model()
    saved = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert {"config.json", "generation_config.json", "model.safetensors", "training_args.bin"} == saved.keys()
    torch.nn.init.zeros_(trainer.model.lm_head.weight)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            trainer.save_model()
    assert {name: (tmp_path / name).read_bytes() for name in saved} == saved
    trainer.save_model()
    assert names(tmp_path) == sorted(saved)
    assert not load_file(tmp_path / "model.safetensors")["lm_head.weight"].any()


def test_shards_of_the_model_before_go(tmp_path: Path):
    """transformers prefers model.safetensors, and an old one beside new shards would be the model."""
    trainer = BicoTrainer(tiny_llama(), config(tmp_path / "out"), some_rows())
    LlamaForCausalLM(trainer.model.config).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    of_the_user = ("notes.txt", "model-old.safetensors", "model_backup.safetensors")
    for name in of_the_user:
        (tmp_path / "model" / name).touch()
    assert len(list((tmp_path / "model").glob("model-*"))) > 2
    trainer.save_model(str(tmp_path / "model"))
    left = {"config.json", "generation_config.json", "model.safetensors", "training_args.bin", *of_the_user}
    assert left == set(names(tmp_path / "model"))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in trainer.model.state_dict().items())


def test_no_model_is_a_mixture_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The process dies when the new weights lie beside what is left of the earlier model."""
    trainer = train(tmp_path)
    trainer.save_model()
    replace = os.replace

    def move(source, target):
        replace(source, target)
        if Path(target).name == "model.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", move)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_model()
    with pytest.raises(FileNotFoundError, match=r"folder without a config\.json"):
        checkpoints.load(tmp_path)


def test_a_run_without_checkpoints_that_is_killed_while_its_files_are_moved_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A part of the files lies in the output folder then, which --resume took for files of someone else."""
    write_facts_and_model(tmp_path)
    command = ["train", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "facts"), "--max_steps", "1"]
    command += ["--save_strategy", "no", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*command, "--output-dir", str(whole)]) == 0
    replace, moved = os.replace, []

    def move(most, source, target):
        if len(moved) == most:
            raise KeyboardInterrupt
        moved.append(Path(target).name)
        replace(source, target)

    for most in (1, len(names(whole)) - 1):
        moved.clear()
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", partial(move, most))
            assert main([*command, "--output-dir", str(out), *["--resume"] * out.exists()]) == 130
        assert set(moved) < set(names(out)), "beside what was moved lies _unfinished"
        assert not (out / "config.json").exists()
        assert unfinished_model(out)
    assert main([*command, "--output-dir", str(out)]) == 1
    assert "already holds files; add --resume" in capsys.readouterr().err
    assert main([*command, "--output-dir", str(out), "--resume"]) == 0
    assert names(out) == names(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_resume_finds_the_checkpoint_that_has_not_yet_got_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The process died between the two renames, and nothing else lies in the output folder."""
    write_facts_and_model(tmp_path)
    out = tmp_path / "out"
    command = ["train", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "facts"), "--max_steps", "2"]
    command += ["--save_steps", "1", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    command += ["--output-dir", str(out)]
    assert main(command) == 0
    (out / "_unfinished").mkdir()
    (out / "checkpoint-1").rename(out / "_unfinished" / "replaced")
    (out / "checkpoint-2").rename(out / "_unfinished" / "checkpoint-2")
    for file in out.glob("*.*"):
        file.unlink()
    assert names(out) == ["_unfinished"]
    assert main([*command, "--resume"]) == 0
    assert "has no checkpoint" not in capsys.readouterr().err
    assert "checkpoint-2" in names(out)
