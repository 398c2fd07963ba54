"""The parts of a data set that a comparison needs: what is missing is named before training."""

import dataclasses
import json
import shutil

import pytest

from bico_ext.comparison.compare import compare
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate
from bico_ext.facts.types import Example


def test_data_without_tasks_are_refused(config, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "Ada", "completion": " wrote."}\n')
    with pytest.raises(ValueError, match="has no tasks to evaluate"):
        compare(dataclasses.replace(config, data=str(tmp_path / "train.jsonl")))


def test_pre_training_texts_are_needed(config):
    with pytest.raises(ValueError, match="has no texts about other entities to pre-train on"):
        compare(dataclasses.replace(config, setting="pretrained"))


def test_the_other_order_is_needed_before_anything_is_trained(config, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "other_order.jsonl").unlink()
    with pytest.raises(ValueError, match=r"in the other order, which both-orders needs \(other_order.jsonl"):
        compare(dataclasses.replace(config, data=str(copy), systems=["ntp", "both-orders"]))
    assert not (tmp_path / "out").exists()


def test_entities_are_needed_before_anything_is_trained(config, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    for file in copy.glob("*2*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**row, "entity": None}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="does not name the entities of its questions, which reverse-entities needs"):
        compare(dataclasses.replace(config, data=str(copy), systems=["reverse-entities"]))
    assert not (tmp_path / "out").exists()


def test_texts_that_give_answers_away_are_refused(config, tmp_path):
    facts = generate(names_first=2, descriptions_first=2, both=1, pretraining=0)
    question = facts.tasks["N2D-reverse"].examples[0]
    leaking = dataclasses.replace(facts, train=(*facts.train, Example(question.prompt, question.completion)))
    write_facts(leaking, tmp_path / "leaking")
    with pytest.raises(ValueError, match=r"gives .* answers away"):
        compare(dataclasses.replace(config, data=str(tmp_path / "leaking")))
