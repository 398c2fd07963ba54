"""The names of the comparison's systems."""

import pytest

from bico_ext.comparison.systems import SYSTEMS, System, named
from bico_ext.objectives.registry import OBJECTIVES


def test_all_is_every_system_and_every_objective_is_one():
    assert named(["all"]) == list(SYSTEMS)
    assert {system.objective for system in SYSTEMS.values()} == set(OBJECTIVES)
    assert named(["bico", "ntp"]) == ["bico", "ntp"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ntp", "mlm"], "objectives must be 'all' or of ntp, .*, got mlm"),
        (["all", "ntp"], "got all"),
        (["ntp", "ntp"], "each once"),
        ([], "one or more"),
    ],
)
def test_other_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        named(names)


def test_a_system_needs_an_objective_that_there_is():
    with pytest.raises(ValueError, match="objective must be one of"):
        System("mlm")


def test_only_an_objective_that_keeps_entities_whole_is_told_them():
    with pytest.raises(ValueError, match="entities must be False, as objective 'bico' has no use for them"):
        System("bico", entities=True)
