"""Fixtures: small synthetic facts and a comparison that takes seconds."""

import pytest

from bico_ext.comparison.config import CompareConfig
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
