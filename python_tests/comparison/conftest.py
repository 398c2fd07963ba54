"""Fixtures: small synthetic facts and a comparison that takes seconds."""

import pytest

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.initial_models import initial_model
from bico_ext.facts.loader import load_facts
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate


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


@pytest.fixture(scope="module")
def given_model(data, tmp_path_factory):
    """A folder with a small Llama and its tokenizer, as a user would name it."""
    folder = tmp_path_factory.mktemp("model")
    facts = load_facts(data)
    for part in initial_model(CompareConfig("out", data=data, layers=1, hidden_size=32), facts, "llama", 7):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def given(config, given_model):
    """The comparison of `config` with a given model, and its presets."""
    return CompareConfig(
        output_dir=config.output_dir,
        data=config.data,
        model=given_model,
        systems=["ntp", "infill"],
        steps=80,
        curve_points=4,
        batch_size=4,
        max_new_tokens=4,
        jobs=2,
    )
