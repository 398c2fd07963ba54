"""`compare`: the files that it writes, resuming, and output folders that it refuses to touch."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock

from bico_ext.comparison.compare import compare
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import TASKS
from bico_ext.reports.records import METRICS, read_results


def predictions_in(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_writes_the_promised_files_and_resumes(config, data, tmp_path):
    results = compare(config)
    out = tmp_path / "out"
    assert read_results(out) == results
    assert [(run.system, run.objective, run.seed) for run in results.runs] == [
        ("ntp", "ntp", 0),
        ("infill", "infill", 0),
    ]
    assert results.environment["torch"] == torch.__version__
    tasks = load_facts(data).tasks
    for run in results.runs:
        assert set(run.tasks) == set(TASKS)
        assert run.parameters > 0
        assert run.train_seconds > 0
        assert [entry["step"] for entry in run.losses] == [25]
        assert [point["step"] for point in run.curve] == [13, 26]
        # With so few questions, the curve asks all of them, too.
        assert {task: round(scores.contains, 4) for task, scores in run.tasks.items()} == run.curve[-1]["tasks"]
        for name, scores in run.tasks.items():
            assert scores.n == len(tasks[name].examples)
            assert all(0 <= getattr(scores, metric) <= 1 for metric in METRICS)
    predictions = predictions_in(out)
    assert len(predictions) == 2 * sum(len(task.examples) for task in tasks.values())
    right = sum(row["contains"] for row in predictions if (row["system"], row["task"]) == ("ntp", "D2N"))
    assert right / len(tasks["D2N"].examples) == results.runs[0].tasks["D2N"].contains

    with pytest.raises(FileExistsError, match="already holds a run; add --resume"):
        compare(config)
    changed = dataclasses.replace(config, resume=True, steps=27)
    with pytest.raises(FileExistsError, match="other settings \\(steps 26 -> 27\\)"):
        compare(changed)

    ntp = out / "runs" / "ntp-seed0.json"
    finished = ntp.read_bytes(), os.stat(ntp).st_mtime_ns
    (out / "runs" / "infill-seed0.json").unlink()
    again = compare(dataclasses.replace(config, resume=True))
    assert (ntp.read_bytes(), os.stat(ntp).st_mtime_ns) == finished, "a finished run was touched"
    for before, after in zip(results.runs, again.runs, strict=True):
        assert (before.losses, before.tasks) == (after.losses, after.tasks), "runs are seeded"


def test_resuming_with_other_seeds_adds_to_the_finished_runs(config, tmp_path):
    first = dataclasses.replace(config, systems=["ntp"])
    compare(first)
    results = compare(dataclasses.replace(first, seeds=[1], resume=True))
    assert [(run.system, run.seed) for run in results.runs] == [("ntp", 0), ("ntp", 1)]
    assert {row["seed"] for row in predictions_in(tmp_path / "out")} == {0, 1}


def test_a_failed_run_leaves_the_finished_ones(config, tmp_path):
    finished = tmp_path / "out" / "runs" / "ntp-seed0.json"
    compare(dataclasses.replace(config, systems=["ntp"]))
    before = finished.read_bytes()
    weights = tmp_path / "out" / "runs" / "infill-seed0"
    weights.write_text("a file where the run wants its folder")
    results = compare(dataclasses.replace(config, resume=True, systems=["infill", "permute"]))
    assert [(failure.system, failure.seed) for failure in results.failures] == [("infill", 0)]
    assert "infill-seed0" in results.failures[0].error
    assert [run.system for run in results.runs] == ["ntp", "permute"]
    assert read_results(tmp_path / "out") == results
    assert finished.read_bytes() == before


def test_ctrl_c_stops_every_run(config, data, tmp_path):
    """The signal goes to the whole process group, as from a terminal, while two runs train and two wait."""
    command = [sys.executable, "-m", "bico_ext.cli", "compare", "--data", data, "--output-dir", str(tmp_path / "out")]
    command += ["--seeds", "0", "1", "--systems", "ntp", "bico", "--steps", "100000", "--jobs", "2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # children of a background job ignore it
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "runs" / "ntp-seed0").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors[-2000:]
    assert "interrupted; finished work is kept" in errors
    assert not list((tmp_path / "out" / "runs").glob("*.json"))


def test_refuses_a_folder_with_other_files(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty and holds no comparison"):
        compare(config)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_refuses_a_folder_in_use(config, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        with pytest.raises(FileExistsError, match="is being written to by another comparison; wait for it"):
            compare(config)
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [".lock"], "the other folder was touched"


def test_a_model_that_fills_blanks_is_also_evaluated_causally(config, tmp_path):
    results = compare(dataclasses.replace(config, systems=["glm-abi"], steps=2, curve_points=0))
    assert [run.system for run in results.runs] == ["glm-abi", "glm-abi, asked causally"]
    rows = predictions_in(tmp_path / "out")
    assert {row["system"] for row in rows} == {"glm-abi", "glm-abi, asked causally"}
    assert len(rows) == 2 * sum(scores.n for scores in results.runs[0].tasks.values())


def test_models_are_pre_trained_once_per_seed_then_fine_tuned(config, data_to_pretrain_on, tmp_path):
    pretrained = dataclasses.replace(
        config,
        setting="pretrained",
        facts="one-order",
        data=data_to_pretrain_on,
        replay=0.25,
        steps=2,
        systems=["ntp", "bico"],
    )
    results = compare(pretrained)
    assert results.failures == ()
    assert [(run.texts, run.replayed) for run in results.runs] == [(120, 40)] * 2
    start = tmp_path / "out" / "pretrained" / "llama-seed0" / "model.safetensors"
    written = os.stat(start).st_mtime_ns
    again = dataclasses.replace(pretrained, systems=["infill"], resume=True)
    assert [run.system for run in compare(again).runs] == ["ntp", "bico", "infill"]
    assert os.stat(start).st_mtime_ns == written, "the model was pre-trained again"


def test_other_texts_in_the_other_order_do_not_share_a_folder(config, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    changing = dataclasses.replace(config, data=str(copy), systems=["ntp"], steps=1, curve_points=0, resume=True)
    compare(changing)
    lines = (copy / "other_order.jsonl").read_text().splitlines(keepends=True)
    (copy / "other_order.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(FileExistsError, match="the facts have changed"):
        compare(dataclasses.replace(changing, systems=["ntp", "both-orders"]))


def test_other_facts_or_other_pre_training_do_not_share_a_folder(config, data_to_pretrain_on, tmp_path):
    pretrained = dataclasses.replace(
        config, setting="pretrained", facts="one-order", data=data_to_pretrain_on, steps=2, resume=True
    )
    broken = tmp_path / "out" / "runs" / "ntp-seed0"
    broken.parent.mkdir(parents=True)
    (tmp_path / "out" / "settings.json").write_text("{}")
    broken.write_text("a file where the run wants its folder")
    results = compare(dataclasses.replace(pretrained, systems=["ntp"]))
    assert results.runs == ()  # the folder holds a pre-trained model and no run
    with pytest.raises(FileExistsError, match=r"other settings \(replay 0\.0 -> 0\.5\)"):
        compare(dataclasses.replace(pretrained, systems=["ntp"], replay=0.5))
    with pytest.raises(FileExistsError, match="other settings \\(pretrain_steps 3 -> 4\\)"):
        compare(dataclasses.replace(pretrained, systems=["ntp"], pretrain_steps=4))
    copy = tmp_path / "copy"
    shutil.copytree(data_to_pretrain_on, copy)
    first = dataclasses.replace(config, systems=["ntp"], data=str(copy), output_dir=str(tmp_path / "edited"))
    compare(first)
    lines = (copy / "train.jsonl").read_text().splitlines()
    (copy / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(FileExistsError, match="the facts have changed"):
        compare(dataclasses.replace(first, resume=True))
