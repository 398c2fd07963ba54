"""A run that was killed goes on from its checkpoint and has the results of one that was not."""

import dataclasses
import json
import shutil

import pytest
from transformers import TrainerCallback

from bico_ext.comparison.compare import _settings_for, compare
from bico_ext.comparison.initial_models import partly_pretrained, pretrain, pretrained_folder
from bico_ext.comparison.resume import remove_checkpoints, steps_done
from bico_ext.comparison.run import run, run_folder
from bico_ext.facts.loader import load_facts
from bico_ext.files import write_json, write_text
from bico_ext.reports.records import to_json
from bico_ext.training.complete_checkpoints import last_complete


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


class NoteSteps(TrainerCallback):
    def __init__(self):
        self.taken = []

    def on_step_end(self, args, state, control, **kwargs):
        self.taken.append(state.global_step)


def without_times(finished):
    (entry,) = finished
    return {**to_json(entry.run), "train_seconds": None}, entry.predictions


@pytest.mark.parametrize(("name", "lora"), [("ntp", False), ("infill", False), ("bico", True)])
def test_a_killed_run_ends_as_an_uninterrupted_one(given, tmp_path, name, lora):
    given = dataclasses.replace(given, lora=lora, systems=[name])
    whole = without_times(run(dataclasses.replace(given, output_dir=str(tmp_path / "whole")), name, 0))
    folder = run_folder(given, name, 0)
    always = dataclasses.replace(given, checkpoint_minutes=0)
    with pytest.raises(Killed):
        run(always, name, 0, [KillAt(60)])
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-50"]
    cut = shutil.copytree(folder / "checkpoint-50", folder / "checkpoint-75")  # killed while it was written
    (cut / "trainer_state.json").write_text('{"global_step": 7')
    assert last_complete(folder) == folder / "checkpoint-50"
    state = folder / "checkpoint-50" / "trainer_state.json"
    before = json.loads(state.read_text())
    (entry,) = (entry for entry in before["log_history"] if entry.get("seconds") and entry["step"] == 50)
    entry["seconds"] = 1000.0
    state.write_text(json.dumps(before))
    steps = NoteSteps()
    finished = run(given, name, 0, [steps])
    assert without_times(finished) == whole
    assert finished[0].run.train_seconds > 1000
    assert steps.taken == list(range(51, 81))
    assert [point["step"] for point in whole[0]["curve"]] == [20, 40, 60, 80]
    assert [entry["step"] for entry in whole[0]["losses"]] == [25, 50, 75]


def test_a_killed_pre_training_ends_as_an_uninterrupted_one(config, data_to_pretrain_on, tmp_path):
    """It started over: with a given model, after an hour or more."""
    settings = {"setting": "pretrained", "facts": "one-order", "data": data_to_pretrain_on, "pretrain_steps": 40}
    config = dataclasses.replace(config, **settings, replay=0.5, checkpoint_minutes=0)
    steps = NoteSteps()
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    pretrain(whole, "llama", 0, steps)
    with pytest.raises(Killed):
        pretrain(config, "llama", 0, KillAt(30))
    assert steps_done(partly_pretrained(config, "llama", 0)) == 25
    (tmp_path / "out" / "settings.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already holds a run; add --resume to keep what is finished"):
        compare(config)
    pretrain(config, "llama", 0, steps)
    assert steps.taken == [*range(1, 41), *range(26, 41)]
    first, second = (pretrained_folder(case, "llama", 0) for case in (whole, config))
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert {path.name for path in second.iterdir()} == {path.name for path in first.iterdir()}
    assert not list(second.glob("checkpoint-*"))
    assert [path.name for path in second.parent.iterdir()] == ["llama-seed0"]


def test_compare_continues_only_a_run_with_the_same_settings(given, capsys):
    given = dataclasses.replace(given, systems=["ntp"], curve_points=0)
    with pytest.raises(Killed):
        run(dataclasses.replace(given, checkpoint_minutes=0), "ntp", 0, [KillAt(60)])
    folder = run_folder(given, "ntp", 0)
    (folder.parent.parent / "settings.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already holds a run; add --resume to keep what is finished"):
        compare(given)
    with pytest.raises(FileExistsError, match="holds runs with other settings"):
        compare(dataclasses.replace(given, resume=True))
    assert last_complete(folder) == folder / "checkpoint-50"


def test_a_comparison_that_was_killed_while_it_wrote_its_first_file_starts_again(given, tmp_path):
    """The rest of that file made the folder one of someone else."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".settings.json.4711").write_text("{")
    assert _settings_for(out, given, "digest")["steps"] == 80
    (out / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty and holds no comparison"):
        _settings_for(out, given, "digest")


def test_a_broken_file_is_named_before_a_run_is_made(given, tmp_path, monkeypatch):
    """It was one of the last things that a comparison read, and the message did not say which file."""
    monkeypatch.setattr("bico_ext.comparison.compare.run_all", None)
    out = tmp_path / "out"
    digest = load_facts(given.data).digest()
    out.mkdir()
    write_json(out / "settings.json", _settings_for(out, given, digest))
    run_file = out / "runs" / "ntp-seed0.json"
    write_text(run_file, '[{"system": "nt')
    with pytest.raises(ValueError, match=r"ntp-seed0\.json is broken \(.*\); delete it, and --resume makes this run"):
        compare(dataclasses.replace(given, resume=True))
    write_text(out / "settings.json", "{")
    with pytest.raises(ValueError, match=r"settings\.json is broken \(.*\); name another folder"):
        compare(dataclasses.replace(given, resume=True))


def test_checkpoints_of_a_finished_run_go_though_it_was_killed_before(tmp_path):
    """A run writes its results, and then removes its checkpoints; a model that was kept stays."""
    for name in ("kept", "not-kept"):
        for left in ("checkpoint-50", "_unfinished/model"):
            (tmp_path / name / left).mkdir(parents=True)
            (tmp_path / name / left / "model.safetensors").touch()
        if name == "kept":
            (tmp_path / name / "config.json").touch()
        remove_checkpoints(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["config.json"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_finished_run_leaves_no_checkpoint(given, kept):
    config = dataclasses.replace(given, systems=["ntp"], save_models=kept, checkpoint_minutes=0)
    results = compare(config)
    assert results.failures == ()
    folder = run_folder(given, "ntp", 0)
    (folder / "checkpoint-75").mkdir(parents=True)  # killed before it was removed
    assert compare(dataclasses.replace(config, resume=True)).runs == results.runs
    assert folder.exists() == kept
    assert (folder / "model.safetensors").exists() == kept
    assert not list(folder.glob("checkpoint-*"))
