"""One run: every system trains and answers, and the record says what was trained and scored."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

import bico_ext.comparison.run as run_module
import bico_ext.comparison.trainer as trainer_module
from bico_ext.comparison.compare import compare
from bico_ext.comparison.run import run
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.evaluation.evaluate import evaluate
from bico_ext.evaluation.fluency import fluency
from bico_ext.evaluation.likelihood import likelihood_test
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import TASKS
from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.reports.records import Fluency, tasks_from_json, to_json
from bico_ext.training.trainer import BicoTrainer


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_trains_and_answers(config, name):
    finished = run(dataclasses.replace(config, steps=2, curve_points=1), name, 0)
    assert len(finished) == 1 + SYSTEMS[name].blank_generation
    for entry in finished:
        assert entry.run.tasks.keys() == set(TASKS)
        asked_causally = entry is finished[-1]  # the log-probability test applies to causal generation only
        assert all((scores.likelihood is not None) == asked_causally for scores in entry.run.tasks.values())
        assert {prediction["task"] for prediction in entry.predictions} == set(TASKS)
    assert [point["step"] for point in finished[0].run.curve] == [2]


def test_the_scores_are_those_of_the_saved_model(config, data, tmp_path):
    """Training computes in bfloat16, but evaluation uses the weights in float32."""
    trained = dataclasses.replace(config, steps=4, bf16=True, curve_points=0)
    (finished,) = run(trained, "bico", 0)
    likelihoods = {name: scores.likelihood for name, scores in finished.run.tasks.items()}
    saved = tmp_path / "out" / "runs" / "bico-seed0"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    for name, task in load_facts(data).tasks.items():
        expected = likelihood_test(model, tokenizer, task, progress=False)
        assert likelihoods[name]["correct"] == pytest.approx(expected["correct"], rel=1e-6)


def test_a_diverged_run_is_a_result(config, monkeypatch):
    def diverged(self, *args, **kwargs):
        self.state.log_history.append({"loss": float("nan"), "loss_ntp": float("nan"), "step": 1})

    monkeypatch.setattr(BicoTrainer, "train", diverged)
    (finished,) = run(config, "ntp", 0)
    assert finished.run.losses == ({"loss_ntp": None, "step": 1},)
    json.dumps(to_json(finished.run), allow_nan=False)


@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_is_used_if_there_is_one(config, monkeypatch, gpu):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(trainer_module, "BicoConfig", lambda **options: seen.append(options["use_cpu"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(config, "ntp", 0)
    assert seen == [not gpu]


def test_the_system_that_keeps_entities_whole_is_told_them(config, data, tmp_path):
    compare(dataclasses.replace(config, systems=["reverse-entities"], steps=2, curve_points=0))
    names = {question.entity for task in load_facts(data).tasks.values() for question in task.examples}
    told = tmp_path / "out" / "runs" / "entities.txt"
    assert set(told.read_text().splitlines()) == names
    saved = torch.load(tmp_path / "out" / "runs" / "reverse-entities-seed0" / "training_args.bin", weights_only=False)
    assert (saved.objective, saved.entities_file) == ("reverse", str(told))


@pytest.mark.parametrize(
    ("name", "share", "count"),
    [("ntp", 0.0, 0), ("ntp", 0.25, 40), ("both-orders", 0.25, 80), ("ntp", 0.5, 120), ("ntp", 0.75, 120)],
)
def test_replay_is_a_share_of_the_texts_as_far_as_there_are_enough(
    config, data_to_pretrain_on, monkeypatch, name, share, count
):
    class Stop(Exception):
        pass

    def trainer(model, args, dataset, **_):
        read.append([text["prompt"] + text["completion"] for text in dataset])
        raise Stop

    read = []
    config = dataclasses.replace(
        config, setting="pretrained", facts="one-order", data=data_to_pretrain_on, systems=[name], replay=share
    )
    monkeypatch.setattr(run_module, "starting_model", lambda *_: (None, SimpleNamespace(pad_token_id=0)))
    monkeypatch.setattr(trainer_module, "BicoTrainer", trainer)
    for seed in (0, 1):
        with pytest.raises(Stop):
            run(config, name, seed)
    facts = load_facts(data_to_pretrain_on)
    new = [example.text for example in (*facts.one_order, *(facts.other_order if name == "both-orders" else ()))]
    for texts in read:
        assert texts[: len(new)] == new
        assert len(texts) == len(set(texts)) == len(new) + count
        assert {example.text for example in facts.pretraining}.issuperset(texts[len(new) :])
    assert (read[0] == read[1]) == (count == 0), "each seed draws other texts"


@pytest.fixture
def given_model(data, tmp_path):
    """Save a small model and its tokenizer, as a user gives them, and return their folder."""
    tokenizer = train_word_tokenizer([example.text for example in load_facts(data).train])
    model = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "given")
    return str(tmp_path / "given")


def test_a_given_model_is_also_measured_before_fine_tuning(config, data, given_model, tmp_path):
    config = dataclasses.replace(
        config, model=given_model, layers=None, hidden_size=None, systems=["ntp"], steps=2, curve_points=0
    )
    before, ntp = compare(config).runs
    assert (before.system, before.seed, ntp.system) == ("before fine-tuning", None, "ntp")
    facts = load_facts(data)
    for run_, folder in ((before, given_model), (ntp, tmp_path / "out" / "runs" / "ntp-seed0")):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        evaluation = evaluate(model, tokenizer, facts.tasks, max_new_tokens=4, likelihood=True, progress=False)
        assert run_.tasks == tasks_from_json(evaluation.summary())
        assert run_.fluency == Fluency(**fluency(model, tokenizer))
    assert before.fluency != ntp.fluency

    file = tmp_path / "out" / "runs" / "before.json"
    written = file.stat().st_mtime_ns
    results = compare(dataclasses.replace(config, seeds=[0, 1], resume=True))
    assert [(run.system, run.seed) for run in results.runs] == [("before fine-tuning", None), ("ntp", 0), ("ntp", 1)]
    assert file.stat().st_mtime_ns == written, "it was measured again"


def test_a_model_trained_from_scratch_has_nothing_to_lose(config):
    (ntp,) = compare(dataclasses.replace(config, systems=["ntp"], steps=2, curve_points=0)).runs
    assert ntp.fluency is None
