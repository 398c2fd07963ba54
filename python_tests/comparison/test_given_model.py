"""A comparison with a pre-trained model that the user names: its presets, adapters, precision, memory and disk."""

import dataclasses
import sys
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import bico_ext.comparison.compare as compare_module
import bico_ext.comparison.run as run_module
import bico_ext.comparison.trainer as trainer_module
from bico_ext import environment
from bico_ext.comparison.compare import compare
from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.curve import Curve
from bico_ext.comparison.initial_models import initial_model
from bico_ext.comparison.run import run
from bico_ext.comparison.training_data import select_facts, with_steps
from bico_ext.evaluation.evaluate import evaluate
from bico_ext.evaluation.fluency import fluency
from bico_ext.evaluation.likelihood import likelihood_test
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import Question, Task
from bico_ext.models.checkpoints import count_parameters
from bico_ext.reports.records import Fluency, tasks_from_json


@pytest.mark.parametrize(("facts", "texts"), [("all", 180), ("one-order", 120)])
def test_epochs_give_every_system_the_same_steps(given, data, facts, texts):
    config = CompareConfig(given.output_dir, data=data, model=given.model, facts=facts, systems=["ntp", "both-orders"])
    selected = select_facts(config, load_facts(data))
    assert len(selected.train) == texts
    assert with_steps(config, selected).steps == 8 * -(-texts // 32)
    assert with_steps(given, selected) == given, "steps that are given stay as they are"


def test_facts_in_one_order_are_needed_to_train_on_them(given, tmp_path):
    (tmp_path / "facts").mkdir()
    for name in ("train", "N2D"):
        (tmp_path / "facts" / f"{name}.jsonl").write_text('{"prompt": "Ada", "completion": " wrote."}\n')
    with pytest.raises(ValueError, match=r"has no training texts of facts in one order only .*; use facts='all'"):
        compare(dataclasses.replace(given, data=str(tmp_path / "facts"), facts="one-order"))


def test_adapters_are_trained_saved_and_evaluated(given, data, tmp_path):
    (finished,) = run(dataclasses.replace(given, lora=True, save_models=True, eval_bf16=False, steps=4), "bico", 0)
    saved = tmp_path / "out" / "runs" / "bico-seed0"
    base, tokenizer = AutoModelForCausalLM.from_pretrained(given.model), AutoTokenizer.from_pretrained(saved)
    before = base.num_parameters()
    model = PeftModel.from_pretrained(base, str(saved))
    assert not (saved / "model.safetensors").exists()
    adapters = model.peft_config["default"]
    assert (adapters.r, adapters.lora_alpha, adapters.lora_dropout) == (32, 16, 0.01)
    assert {name.split(".")[-1] for name in adapters.target_modules} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert finished.run.parameters == model.num_parameters() > before
    for name, task in load_facts(data).tasks.items():
        expected = likelihood_test(model, tokenizer, task, progress=False)
        assert finished.run.tasks[name].likelihood["correct"] == pytest.approx(expected["correct"], rel=1e-6)


def test_adapters_need_peft(given, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ImportError, match=r'LoRA adapters need PEFT: pip install --no-build-isolation "\.\[lora\]" \(in the clone'
    ):
        compare(dataclasses.replace(given, lora=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bf16", [False, True])
def test_evaluation_computes_in_the_precision_of_the_settings(given, monkeypatch, bf16):
    dtypes = []

    def spied(model, *args, **options):
        head = model.get_output_embeddings()
        hook = head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        try:
            return evaluate(model, *args, **options)
        finally:
            hook.remove()

    monkeypatch.setattr(run_module, "evaluate", spied)
    run(dataclasses.replace(given, eval_bf16=bf16, steps=2, curve_points=1), "ntp", 0)
    assert set(dtypes) == {torch.bfloat16 if bf16 else torch.float32}


def test_the_curve_asks_in_many_templates(given):
    templates = [f"{number} ..." for number in range(10)]
    questions = [Question(f"{number % 10} {number}", " x", template=templates[number % 10]) for number in range(300)]
    tasks = {"N2D": Task("N2D", "name", tuple(questions))}
    drawn, again = (Curve(given, lambda model, tasks: {}, tasks).tasks["N2D"].examples for _ in range(2))
    assert drawn == again, "every run asks the same questions"
    assert len(set(drawn)) == given.curve_questions == 30
    assert len({question.template for question in drawn}) > 5


def test_parameters_are_counted_without_weights(given, data):
    assert count_parameters(given.model) == AutoModelForCausalLM.from_pretrained(given.model).num_parameters()
    with pytest.raises(FileNotFoundError, match="/no/such/model: no such folder"):
        count_parameters("/no/such/model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            r"needs 0\.4 GB of memory and more \(16 bytes .* 27 million parameters, 1 at once\), but 0\.1 GB are free",
        ),
        ({"jobs": 3}, r"needs 0\.9 GB .*, 2 at once\).*; lower jobs, set lora or use a smaller model"),
        ({"lora": True}, r"needs 0\.1 GB .*\(4 bytes .*; lower jobs, use a smaller model"),
    ],
)
def test_too_little_memory_is_said_before_the_model_is_loaded(given, monkeypatch, changes, message):
    monkeypatch.setattr(compare_module, "count_parameters", lambda model: 27_000_000)
    monkeypatch.setattr(trainer_module, "_free_memory", lambda: 100_000_000)
    monkeypatch.setattr(compare_module, "check_model", None)
    with pytest.raises(RuntimeError, match=message):
        compare(dataclasses.replace(given, **{"jobs": None, **changes}))


@pytest.mark.parametrize(("kept", "needed"), [(False, "1.3"), (True, "1.5")])
def test_too_little_disk_is_said_before_training(given, monkeypatch, kept, needed):
    monkeypatch.setattr(compare_module, "count_parameters", lambda model: 27_000_000)
    monkeypatch.setattr(trainer_module.shutil, "disk_usage", lambda folder: type("", (), {"free": 100_000_000}))
    with pytest.raises(RuntimeError, match=rf"needs {needed} GB for checkpoints and models, but its disk has 0\.1 GB"):
        compare(dataclasses.replace(given, save_models=kept))


def test_pre_training_needs_disk_for_all_weights_though_adapters_follow(given, monkeypatch):
    """Its checkpoints hold the weights and their moments: 2 x 12 bytes for each parameter and run at once."""
    monkeypatch.setattr(trainer_module.shutil, "disk_usage", lambda folder: type("", (), {"free": 100_000_000}))
    adapters = dataclasses.replace(given, lora=True)
    trainer_module.check_disk(adapters, 27_000_000, 1, 1)
    pretrained = dataclasses.replace(adapters, setting="pretrained", facts="one-order", replay=0.5)
    with pytest.raises(RuntimeError, match=r"needs 0\.6 GB for checkpoints and models, but its disk has 0\.1 GB"):
        trainer_module.check_disk(pretrained, 27_000_000, 1, 1)


@pytest.mark.parametrize(
    ("parameters", "gpu", "jobs"), [(27_000_000, False, 1), (1_000_000, False, 2), (1_000_000, True, 1)]
)
def test_large_models_and_those_on_a_gpu_are_trained_one_after_the_other(given, monkeypatch, parameters, gpu, jobs):
    class Stop(Exception):
        pass

    def stop(config, parameters, jobs, runs):
        seen.append(jobs)
        raise Stop

    seen = []
    monkeypatch.setattr(compare_module, "count_parameters", lambda model: parameters)
    monkeypatch.setattr(compare_module, "trains_on_gpu", lambda: gpu)
    monkeypatch.setattr(environment, "cores", lambda: 8)
    monkeypatch.setattr(compare_module, "check_disk", stop)
    with pytest.raises(Stop):
        compare(dataclasses.replace(given, jobs=None))
    assert seen == [jobs]


def test_the_free_memory_of_a_gpu_counts_there(given, monkeypatch):
    monkeypatch.setattr(trainer_module, "trains_on_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**10))
    trainer_module.check_memory(given, 60_000_000, jobs=1)
    with pytest.raises(RuntimeError, match=r"needs 1\.1 GB of GPU memory and more .*, but 1\.0 GB are free"):
        trainer_module.check_memory(given, 70_000_000, jobs=1)


def test_every_system_starts_from_the_given_weights(given, data):
    first, second = (initial_model(given, load_facts(data), "llama", seed)[0].state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def assert_close(actual: Any, expected: Any) -> None:
    """Assert equality, of floats to rounding: on some CPUs, products in float32 are not the same in each process."""
    if dataclasses.is_dataclass(expected):
        assert type(actual) is type(expected)
        actual, expected = vars(actual), vars(expected)
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(actual[key], value)
    else:
        assert actual == (pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_given_model_is_also_measured_before_fine_tuning(given, data, tmp_path, bf16):
    given = dataclasses.replace(given, systems=["ntp"], steps=2, curve_points=0, save_models=True, eval_bf16=bf16)
    before, ntp = compare(given).runs
    assert (before.system, before.seed, ntp.system) == ("before fine-tuning", None, "ntp")
    for measured, folder in ((before, given.model), (ntp, tmp_path / "out" / "runs" / "ntp-seed0")):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            evaluation = evaluate(
                model, tokenizer, load_facts(data).tasks, max_new_tokens=4, likelihood=True, progress=False
            )
            speaks = fluency(model, tokenizer)
        assert_close(measured.tasks, tasks_from_json(evaluation.summary()))
        assert_close(measured.fluency, Fluency(**speaks))
    assert before.fluency != ntp.fluency


def test_it_is_measured_once(given, tmp_path):
    given = dataclasses.replace(given, systems=["ntp"], steps=2, curve_points=0)
    compare(given)
    file = tmp_path / "out" / "runs" / "before.json"
    written = file.stat().st_mtime_ns
    results = compare(dataclasses.replace(given, seeds=[0, 1], resume=True))
    assert [(run.system, run.seed) for run in results.runs] == [("before fine-tuning", None), ("ntp", 0), ("ntp", 1)]
    assert file.stat().st_mtime_ns == written


def test_a_model_that_cannot_be_measured_is_refused_before_training(given, data, tmp_path):
    model, tokenizer = initial_model(given, load_facts(data), "llama", 0)
    model.config.max_position_embeddings = 255
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "short")
    with pytest.raises(RuntimeError, match=r"cannot be evaluated before fine-tuning: .* needs 256 tokens, .* is 255"):
        compare(dataclasses.replace(given, model=str(tmp_path / "short")))
    assert not list((tmp_path / "out" / "runs").glob("*"))


def test_a_model_trained_from_scratch_has_nothing_to_lose(config):
    (ntp,) = compare(dataclasses.replace(config, systems=["ntp"], steps=2, curve_points=0)).runs
    assert (ntp.system, ntp.fluency) == ("ntp", None)
