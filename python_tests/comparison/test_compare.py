"""`compare`: the files it promises, resuming, and refusing to touch what another run wrote."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

import bico_ext.comparison.run as runs_module
from bico_ext.comparison.compare import compare
from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.run import initial_model, run
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.evaluation.likelihood import likelihood_test
from bico_ext.facts.loader import load_facts
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate
from bico_ext.facts.types import TASKS, Example
from bico_ext.reports.records import METRICS, read_results, to_json
from bico_ext.training.trainer import BicoTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    write_facts(generate(names_first=2, descriptions_first=2, both=1, pretraining=0), folder)
    return str(folder)


@pytest.fixture(scope="module")
def data_to_pretrain_on(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts-and-more")
    write_facts(generate(names_first=2, descriptions_first=2, both=1, pretraining=2), folder)
    return str(folder)


@pytest.fixture
def config(data, tmp_path):
    return CompareConfig(
        output_dir=str(tmp_path / "out"),
        data=data,
        systems=["ntp", "infill"],
        steps=26,
        pretrain_steps=3,
        curve_points=2,
        layers=1,
        hidden_size=32,
        batch_size=4,
        max_new_tokens=4,
        jobs=2,
    )


def predictions_in(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_writes_what_it_promises_and_resumes(config, data, tmp_path):
    results = compare(config)
    out = tmp_path / "out"
    assert read_results(out) == results
    assert [(one.system, one.objective, one.seed) for one in results.runs] == [
        ("ntp", "ntp", 0),
        ("infill", "infill", 0),
    ]
    assert results.environment["torch"] == torch.__version__
    tasks = load_facts(data).tasks
    for result in results.runs:
        assert set(result.tasks) == set(TASKS)
        assert result.parameters > 0
        assert result.train_seconds > 0
        assert [entry["step"] for entry in result.losses] == [25]
        assert [point["step"] for point in result.curve] == [13, 26]
        # so few questions are all asked for the curve, too
        assert {task: round(scores.contains, 4) for task, scores in result.tasks.items()} == result.curve[-1]["tasks"]
        for name, scores in result.tasks.items():
            assert scores.n == len(tasks[name].examples)
            assert all(0 <= getattr(scores, metric) <= 1 for metric in METRICS)
    predictions = predictions_in(out)
    assert len(predictions) == 2 * sum(len(task.examples) for task in tasks.values())
    mean = sum(row["contains"] for row in predictions if (row["system"], row["task"]) == ("ntp", "D2N"))
    assert mean / len(tasks["D2N"].examples) == results.runs[0].tasks["D2N"].contains

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


def test_resuming_with_other_runs_adds_to_those_there_are(config, tmp_path):
    first = dataclasses.replace(config, systems=["ntp"])
    compare(first)
    results = compare(dataclasses.replace(first, seeds=[1], resume=True))
    assert [(one.system, one.seed) for one in results.runs] == [("ntp", 0), ("ntp", 1)]
    assert {row["seed"] for row in predictions_in(tmp_path / "out")} == {0, 1}


def test_a_mistake_found_before_training_claims_nothing(config, tmp_path):
    with pytest.raises(OSError, match="no/such/model"):
        compare(dataclasses.replace(config, model="/no/such/model"))
    with pytest.raises(ValueError, match="but the model's context is"):
        compare(dataclasses.replace(config, max_new_tokens=600))
    assert not (tmp_path / "out").exists()


def test_a_diverged_run_is_a_result(config, monkeypatch):
    def diverged(self, *args, **kwargs):
        self.state.log_history.append({"loss": float("nan"), "loss_ntp": float("nan"), "step": 1})

    monkeypatch.setattr(BicoTrainer, "train", diverged)
    (finished,) = run(config, "ntp", 0)
    assert finished.run.losses == ({"loss_ntp": None, "step": 1},)
    json.dumps(to_json(finished.run), allow_nan=False)


def test_a_gpu_without_kernels_is_not_used(config, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runs_module, "BicoConfig", lambda **options: seen.append(options["use_cpu"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(config, "ntp", 0)
    assert seen == [True]


def test_a_failed_run_leaves_the_finished_ones(config, tmp_path):
    finished = tmp_path / "out" / "runs" / "ntp-seed0.json"
    compare(dataclasses.replace(config, systems=["ntp"]))
    before = finished.read_bytes()
    weights = tmp_path / "out" / "runs" / "infill-seed0"
    weights.write_text("a file where the run wants its folder")
    results = compare(dataclasses.replace(config, resume=True, systems=["infill", "permute"]))
    assert [(one.system, one.seed) for one in results.failures] == [("infill", 0)]
    assert "infill-seed0" in results.failures[0].error
    assert [one.system for one in results.runs] == ["ntp", "permute"]
    assert read_results(tmp_path / "out") == results
    assert finished.read_bytes() == before


def test_ctrl_c_stops_every_run(config, data, tmp_path):
    """As a terminal sends it: to the whole process group, while two runs are under way and two are waiting."""
    command = [sys.executable, "-m", "bico_ext.cli", "compare", "--data", data, "--output-dir", str(tmp_path / "out")]
    command += ["--seeds", "0", "1", "--objectives", "ntp", "bico", "--steps", "100000", "--jobs", "2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children ignore it
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "runs" / "ntp-seed0").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors[-2000:]
    assert "interrupted; what was finished is kept" in errors
    assert not list((tmp_path / "out" / "runs").glob("*.json"))


def test_refuses_a_folder_with_other_things(config, tmp_path):
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
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [".lock"], "the other's folder was touched"


def test_refuses_data_without_tasks(config, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "Ada", "completion": " wrote."}\n')
    with pytest.raises(ValueError, match="has no tasks to evaluate"):
        compare(dataclasses.replace(config, data=str(tmp_path / "train.jsonl")))


def test_one_initial_model_a_seed(config, data):
    facts = load_facts(data)
    first, again, other = (initial_model(config, facts, "llama", seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"systems": ["ntp", "mlm"]},
            "systems must be 'all' or names of this list, got mlm\n  ntp  .*shows the reversal",
        ),
        ({"setting": "finetune"}, "setting must be 'scratch' or 'pretrained', got 'finetune'"),
        ({"permute_segments": 1}, "permute_segments must be at least 2, got 1"),
        ({"systems": ["ntp", "ntp"]}, "systems must be one or more, each once"),
        ({"seeds": []}, "seeds must be one or more, each once"),
        ({"seeds": [0, 2**32]}, "seeds must be in"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"mask_rate": 1.5}, "mask_rate"),
        ({"mixing_probability": 2.0}, "mixing_probability must be in"),
        ({"hidden_size": 130}, "hidden_size must be a multiple of 8"),
        ({"learning_rate": -1.0}, "learning_rate must be 0 or more, and finite, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be 0 or more, and finite, got nan"),
        ({"setting": "pretrained", "replay": 1.0}, "replay must be in"),
        ({"replay": 0.5}, "replay must be 0 without pre-training, got 0.5"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"systems": ["glm-ntp"], "model": "some/llama"}, "glm-ntp are of another model than some/llama"),
        ({"systems": ["abi"], "hidden_size": 48}, "hidden_size must be a multiple of 32 for abi"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(output_dir="out", **change)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_trains_and_answers(config, name):
    ways = run(dataclasses.replace(config, steps=2, curve_points=1), name, 0)
    assert len(ways) == 1 + SYSTEMS[name].blank_generation
    for way in ways:
        assert way.run.tasks.keys() == set(TASKS)
        asked_causally = way is ways[-1]  # which is what the log-probability test is about
        assert all((scores.likelihood is not None) == asked_causally for scores in way.run.tasks.values())
        assert {row["task"] for row in way.predictions} == set(TASKS)
    assert [point["step"] for point in ways[0].run.curve] == [2]


def test_a_model_that_fills_blanks_is_also_asked_causally(config, tmp_path):
    results = compare(dataclasses.replace(config, systems=["glm-abi"], steps=2, curve_points=0))
    assert [one.system for one in results.runs] == ["glm-abi", "glm-abi, asked causally"]
    rows = predictions_in(tmp_path / "out")
    assert {row["system"] for row in rows} == {"glm-abi", "glm-abi, asked causally"}
    assert len(rows) == 2 * sum(scores.n for scores in results.runs[0].tasks.values())


def test_pre_trained_once_a_seed_then_fine_tuned(config, data_to_pretrain_on, tmp_path):
    pretrained = dataclasses.replace(
        config, setting="pretrained", data=data_to_pretrain_on, replay=0.25, steps=2, systems=["ntp", "bico"]
    )
    results = compare(pretrained)
    assert results.failures == ()
    assert [(one.texts, one.replayed) for one in results.runs] == [(120, 40)] * 2
    start = tmp_path / "out" / "pretrained" / "llama-seed0" / "model.safetensors"
    written = os.stat(start).st_mtime_ns
    again = dataclasses.replace(pretrained, systems=["infill"], resume=True)
    assert [one.system for one in compare(again).runs] == ["ntp", "bico", "infill"]
    assert os.stat(start).st_mtime_ns == written, "the pre-trained model was made again"


@pytest.mark.parametrize(
    ("name", "share", "count"),
    [("ntp", 0.0, 0), ("ntp", 0.25, 40), ("both-orders", 0.25, 80), ("ntp", 0.5, 120), ("ntp", 0.75, 120)],
)
def test_replay_is_a_share_of_the_texts_as_far_as_there_are_so_many(
    config, data_to_pretrain_on, monkeypatch, name, share, count
):
    class Stop(Exception):
        pass

    def trainer(model, args, rows, **_):
        read.append([row["prompt"] + row["completion"] for row in rows])
        raise Stop

    read = []
    config = dataclasses.replace(config, setting="pretrained", data=data_to_pretrain_on, systems=[name], replay=share)
    monkeypatch.setattr(runs_module, "starting_model", lambda *_: (None, None))
    monkeypatch.setattr(runs_module, "BicoTrainer", trainer)
    for seed in (0, 1):
        with pytest.raises(Stop):
            run(config, name, seed)
    facts = load_facts(data_to_pretrain_on)
    new = [example.text for example in (*facts.one_order, *(facts.other_order if name == "both-orders" else ()))]
    for texts in read:
        assert texts[: len(new)] == new
        assert len(texts) == len(set(texts)) == len(new) + count
        assert {example.text for example in facts.pretraining}.issuperset(texts[len(new) :])
    assert (read[0] == read[1]) == (count == 0), "each seed draws its own"


def test_the_other_order_is_needed_before_anything_is_trained(config, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "other_order.jsonl").unlink()
    with pytest.raises(ValueError, match=r"in the other order, as both-orders needs \(other_order.jsonl"):
        compare(dataclasses.replace(config, data=str(copy), systems=["ntp", "both-orders"]))
    assert not (tmp_path / "out").exists()


def test_other_texts_in_the_other_order_do_not_share_a_folder(config, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    changing = dataclasses.replace(config, data=str(copy), systems=["ntp"], steps=1, curve_points=0, resume=True)
    compare(changing)
    lines = (copy / "other_order.jsonl").read_text().splitlines(keepends=True)
    (copy / "other_order.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(FileExistsError, match="the facts have changed"):
        compare(dataclasses.replace(changing, systems=["ntp", "both-orders"]))


def test_a_distractor_that_does_not_fit_is_found_before_training(config, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    rows = [json.loads(line) for line in (copy / "N2D.jsonl").read_text().splitlines()]
    rows[-1]["distractor"] = " long" * 600
    (copy / "N2D.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"a text of data .* needs 6\d\d tokens, but the model's context is 512"):
        compare(dataclasses.replace(config, data=str(copy)))
    assert not (tmp_path / "out").exists()


def test_entities_are_told_to_the_system_that_keeps_them_whole(config, data, tmp_path):
    compare(dataclasses.replace(config, systems=["reverse-entities"], steps=2, curve_points=0))
    names = {question.entity for task in load_facts(data).tasks.values() for question in task.examples}
    told = tmp_path / "out" / "runs" / "entities.txt"
    assert set(told.read_text().splitlines()) == names
    saved = torch.load(tmp_path / "out" / "runs" / "reverse-entities-seed0" / "training_args.bin", weights_only=False)
    assert (saved.objective, saved.entities_file) == ("reverse", str(told))


def test_entities_are_needed_before_anything_is_trained(config, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    for file in copy.glob("*2*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**row, "entity": None}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="does not name the entities of its questions, as reverse-entities needs"):
        compare(dataclasses.replace(config, data=str(copy), systems=["reverse-entities"]))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_padding_is_found_before_training(config, data, tmp_path):
    model, tokenizer = initial_model(config, load_facts(data), "llama", 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has no padding token"):
        compare(dataclasses.replace(config, model=str(tmp_path / "model")))


def test_pre_training_needs_texts(config):
    with pytest.raises(ValueError, match="has no texts about other entities to pre-train on"):
        compare(dataclasses.replace(config, setting="pretrained"))


def test_texts_that_give_answers_away_are_refused(config, tmp_path):
    facts = generate(names_first=2, descriptions_first=2, both=1, pretraining=0)
    question = facts.tasks["N2D-reverse"].examples[0]
    leaking = dataclasses.replace(facts, train=(*facts.train, Example(question.prompt, question.completion)))
    write_facts(leaking, tmp_path / "leaking")
    with pytest.raises(ValueError, match=r"gives .* answers away"):
        compare(dataclasses.replace(config, data=str(tmp_path / "leaking")))


def test_a_run_is_scored_as_its_saved_model_is(config, data, tmp_path):
    """Training computes in bfloat16; the scores are those of the weights in float32."""
    trained = dataclasses.replace(config, steps=4, bf16=True, curve_points=0)
    (finished,) = run(trained, "bico", 0)
    likelihoods = {name: scores.likelihood for name, scores in finished.run.tasks.items()}
    saved = tmp_path / "out" / "runs" / "bico-seed0"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    for name, task in load_facts(data).tasks.items():
        expected = likelihood_test(model, tokenizer, task, progress=False)
        assert likelihoods[name]["correct"] == pytest.approx(expected["correct"], rel=1e-6)


def test_other_facts_or_other_pre_training_do_not_share_a_folder(config, data_to_pretrain_on, tmp_path):
    pretrained = dataclasses.replace(config, setting="pretrained", data=data_to_pretrain_on, steps=2, resume=True)
    broken = tmp_path / "out" / "runs" / "ntp-seed0"
    broken.parent.mkdir(parents=True)
    (tmp_path / "out" / "settings.json").write_text("{}")
    broken.write_text("a file where the run wants its folder")
    results = compare(dataclasses.replace(pretrained, systems=["ntp"]))
    assert results.runs == ()  # so that the folder holds nothing but a pre-trained model
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
