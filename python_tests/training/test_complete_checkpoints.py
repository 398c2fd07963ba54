"""A process that is killed or finds the disk full while it saves loses nothing but the steps since the last save."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import config, some_rows, tiny_llama, train
from transformers import Trainer, TrainerCallback

from bico_ext.training.complete_checkpoints import last_complete, missing_part
from bico_ext.training.trainer import BicoTrainer

SAVING = {"save_strategy": "steps", "save_steps": 2}  # of 6 steps
# Each child process trains into a folder and kills itself while it saves step 4: when a part of the Trainer has run, or
# instead of it. A file of what is saved is cut then.
KILLED = {
    "within the model": ("_save", "after", "model.safetensors"),
    "before the optimizer": ("_save_optimizer_and_scheduler", "instead", "nothing"),
    "within the state": ("save_to_json", "after", "trainer_state.json"),
}
KILL = """
import json, os, signal, sys
from pathlib import Path
import tiny_training
from transformers import Trainer, TrainerState

def train_and_die(folder, name, when, cut):
    owner = TrainerState if name == "save_to_json" else Trainer
    whole = getattr(owner, name)
    def part(self, *args, **options):
        saves_step_4 = getattr(self, "state", self).global_step == 4
        if when == "after" or not saves_step_4:
            whole(self, *args, **options)
        if saves_step_4:
            for file in folder.glob("**/checkpoint-4/" + cut):
                os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, part)
    tiny_training.train(folder, save_strategy="steps", save_steps=2, save_total_limit=1)

for place, arguments in json.loads(sys.argv[2]).items():
    child = os.fork()
    if child == 0:
        train_and_die(Path(sys.argv[1]) / place, *arguments)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def weights(trainer: BicoTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """The folder of an uninterrupted run, with the checkpoints of steps 2, 4 and 6, and its weights."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, weights(train(folder, **SAVING))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the output folder of each killed run; one process starts them all, because that takes longest."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run(
        [sys.executable, "-c", KILL, str(folder), json.dumps(KILLED)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
        timeout=120,
    )
    return folder


@pytest.mark.parametrize("place", KILLED)
def test_a_run_that_is_killed_while_saving_goes_on_from_the_checkpoint_before(
    whole: tuple[Path, torch.Tensor], killed: Path, place: str
):
    """`save_total_limit=1`: the only checkpoint goes when the next one is complete, not before."""
    out = killed / place
    assert names(out) == ["_unfinished", "checkpoint-2"]
    assert (out / "_unfinished" / "checkpoint-4" / "model.safetensors").exists(), "killed while it saved"
    resumed = train(out, resume=True, save_total_limit=1, **SAVING)
    torch.testing.assert_close(weights(resumed), whole[1])  # to rounding: products may differ between processes
    assert names(out) == ["checkpoint-6"]


@pytest.mark.parametrize("full", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_where_it_is(
    whole: tuple[Path, torch.Tensor], tmp_path: Path, full: str
):
    """The limit for the size of a file stands for the disk: half of one file of the checkpoint of step 4."""
    size = (whole[0] / "checkpoint-4" / full).stat().st_size
    smaller = (whole[0] / "checkpoint-4" / "model.safetensors").stat().st_size
    limit = size // 2 if full == "model.safetensors" else (size + smaller) // 2

    class FillDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))

    trainer = BicoTrainer(tiny_llama(), config(tmp_path, **SAVING), some_rows(), callbacks=[FillDisk()])
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"checkpoint-4 cannot be saved: ") as raised:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert f"The last complete checkpoint is {tmp_path / 'checkpoint-2'};" in str(raised.value)
    assert "trainer.train(resume_from_checkpoint=True)" in str(raised.value)
    assert names(tmp_path) == ["checkpoint-2"], "the unfinished one does not keep the disk full"
    assert weights(train(tmp_path, resume=True, **SAVING)).equal(whole[1])


def test_an_error_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Trainer, "_save", full_disk)
    with pytest.raises(OSError, match=r"checkpoint-2 cannot be saved: .*There is no complete checkpoint yet\.$"):
        train(tmp_path, **SAVING)


def test_a_run_that_cannot_save_its_model_goes_on_after_the_last_step(
    whole: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The Trainer would make a seventh step here, in the middle of an epoch. The rate does not end at 0, to show it."""
    changes = {**SAVING, "lr_scheduler_type": "constant"}
    trainer = train(tmp_path, **changes)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", full_disk)
        with pytest.raises(OSError, match=rf"^{tmp_path} cannot .*No space.* checkpoint is {tmp_path}/checkpoint-6;"):
            trainer.save_model()
    (tmp_path / "_unfinished" / "checkpoint-5").mkdir(parents=True)
    resumed = train(tmp_path, resume=True, **changes)
    assert not (tmp_path / "_unfinished").exists()
    assert resumed.state.global_step == 6
    assert weights(resumed).equal(weights(trainer))
    assert not weights(resumed).equal(whole[1])


def full_disk(*args: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


DAMAGES = {
    "trainer_state.json is missing or cut": ["cut trainer_state.json", "remove trainer_state.json"],
    "model.safetensors is cut": ["cut model.safetensors"],
    "there are no weights": ["remove model.safetensors"],
    "there is no state of the optimizer": ["remove optimizer.pt", "remove scheduler.pt"],
    "optimizer.pt is cut": ["cut optimizer.pt"],
    "rng_state.pth is cut": ["cut rng_state.pth"],
    "there is no random state": ["remove rng_state.pth"],
}


@pytest.mark.parametrize(
    ("reason", "damage"), [(reason, damage) for reason, damages in DAMAGES.items() for damage in damages]
)
def test_a_damaged_checkpoint_is_skipped_with_one_line(
    whole: tuple[Path, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: str, damage: str
):
    """As older versions, the Trainer itself or a copy that stopped half-way leave them."""
    out = shutil.copytree(whole[0], tmp_path / "out")
    action, name = damage.split()
    file = out / "checkpoint-6" / name
    if action == "remove":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)
    with caplog.at_level(logging.WARNING, "bico_ext"):
        assert last_complete(out) == out / "checkpoint-4"
    assert caplog.messages == [f"{out / 'checkpoint-6'} is skipped, because it is not complete: {reason}"]
    with pytest.raises(ValueError, match=rf"checkpoint-6 is not a complete checkpoint: {reason}; with True, training"):
        train(out, resume=str(out / "checkpoint-6"), **SAVING)


def test_a_shard_may_not_be_missing(tmp_path: Path):
    trainer = train(tmp_path, **{**SAVING, "save_steps": 6})
    folder = tmp_path / "checkpoint-6"
    (folder / "model.safetensors").unlink()
    trainer.model.save_pretrained(folder, max_shard_size="20KB")
    assert missing_part(folder) is None
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    index = folder / "model.safetensors.index.json"
    whole = index.read_text()
    for damaged in "{}", "[]", '{"weight_map": []}', whole[: len(whole) // 2]:
        index.write_text(damaged)
        assert missing_part(folder) == "model.safetensors.index.json is cut"
    index.write_text(whole)
    shards[1].unlink()
    assert missing_part(folder) == f"{shards[1].name} is missing"
    with pytest.raises(ValueError, match="has no complete checkpoint to resume from"):
        train(tmp_path, resume=True)


def test_a_model_alone_is_nothing_to_resume_from(tmp_path: Path):
    train(tmp_path, save_only_model=True, **SAVING)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert last_complete(tmp_path) is None
    assert not (tmp_path / "checkpoint-6" / "optimizer.pt").exists()


def test_the_newest_checkpoint_has_the_largest_number(whole: tuple[Path, torch.Tensor], tmp_path: Path):
    assert last_complete(whole[0]) == whole[0] / "checkpoint-6"
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-of-mine", "checkpoint-11-copy"):
        shutil.copytree(whole[0] / "checkpoint-2", tmp_path / name)
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_a_checkpoint_is_replaced_and_the_best_one_is_found(tmp_path: Path):
    """A run that goes on from an earlier checkpoint writes the later ones again."""
    changes = {**SAVING, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}

    def trained(resume: str | None) -> BicoTrainer:
        trainer = BicoTrainer(tiny_llama(), config(tmp_path, **changes), some_rows(), eval_dataset=some_rows(8))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    first = trained(None)
    (tmp_path / "checkpoint-4" / "stale").touch()
    again = trained(str(tmp_path / "checkpoint-2"))
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert not (tmp_path / "checkpoint-4" / "stale").exists()
    assert weights(again).equal(weights(first))
    losses = {entry["step"]: entry["eval_loss"] for entry in again.state.log_history if "eval_loss" in entry}
    best = str(tmp_path / f"checkpoint-{min(losses, key=losses.__getitem__)}")
    assert again.state.best_model_checkpoint == best
    assert json.loads((Path(best) / "trainer_state.json").read_text())["best_model_checkpoint"] == best


def test_a_checkpoint_is_not_lost_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No folder can take the place of another in one step. Killed between the two, the run had no checkpoint left."""
    changes = {**SAVING, "save_total_limit": 1}
    whole = weights(train(tmp_path / "whole", **changes))
    out = tmp_path / "out"
    train(out, **{**changes, "save_total_limit": 2})
    assert names(out) == ["checkpoint-4", "checkpoint-6"]
    (out / "checkpoint-6" / "stale").touch()
    replace = os.replace

    def die(source: Path, target: Path) -> None:
        if Path(target) == out / "checkpoint-6":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            train(out, resume=str(out / "checkpoint-4"), **changes)
    shutil.rmtree(out / "checkpoint-4")
    assert last_complete(out) == out / "checkpoint-6"
    assert not (out / "checkpoint-6" / "stale").exists()
    assert weights(train(out, resume=True, **changes)).equal(whole)
    assert names(out) == ["checkpoint-6"]


def test_the_best_checkpoint_is_kept_where_the_folder_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The state names it by the path that the folder had. Step 2 is made the best, so it is older than the limit."""
    changes = {
        **SAVING,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "save_total_limit": 2,
    }
    monkeypatch.setattr(BicoTrainer, "evaluate", rising_loss)

    def trained(folder: Path, resume: bool) -> BicoTrainer:
        trainer = BicoTrainer(tiny_llama(), config(folder, **changes), some_rows(), eval_dataset=some_rows(8))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    trained(tmp_path / "first", resume=False)
    assert names(tmp_path / "first") == ["checkpoint-2", "checkpoint-6"]
    shutil.rmtree(tmp_path / "first" / "checkpoint-6")
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    again = trained(moved, resume=True)
    assert names(moved) == ["checkpoint-2", "checkpoint-6"]
    assert again.state.best_model_checkpoint == str(moved / "checkpoint-2")
    best = load_file(moved / "checkpoint-2" / "model.safetensors")
    assert again.model.state_dict()["model.norm.weight"].equal(best["model.norm.weight"])


def rising_loss(trainer: BicoTrainer, *_: object, **__: object) -> dict[str, float]:
    metrics = {"eval_loss": float(trainer.state.global_step)}
    trainer.log(metrics)
    return metrics


def test_only_a_complete_checkpoint_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pushed = []
    monkeypatch.setattr(
        Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append((folder, missing_part(folder)))
    )
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, **SAVING), some_rows())
    monkeypatch.setattr(trainer.args, "push_to_hub", True)
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()
    assert pushed == [(str(tmp_path / f"checkpoint-{step}"), None) for step in (2, 4, 6)]
