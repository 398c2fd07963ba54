"""The names of the comparison's systems."""

import re

import pytest

from bico_ext.comparison.systems import SYSTEMS, System, named
from bico_ext.objectives.registry import OBJECTIVES


def test_all_is_every_system_and_every_objective_is_one():
    assert named(["all"]) == list(SYSTEMS)
    assert {system.objective for system in SYSTEMS.values()} == set(OBJECTIVES)
    assert named(["bico", "ntp"]) == ["bico", "ntp"]


def test_the_error_for_a_wrong_name_says_what_each_system_is():
    with pytest.raises(ValueError, match="got mlm") as error:
        named(["mlm"])
    for name, system in SYSTEMS.items():
        assert re.search(rf"^  {name} +{re.escape(system.summary)}$", str(error.value), re.MULTILINE), name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ntp", "mlm"], "systems must be 'all' or names of this list, got mlm\n  ntp  .*"),
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
        System("mlm", "")


def test_only_an_objective_that_keeps_entities_whole_is_told_them():
    with pytest.raises(ValueError, match="entities must be False, as objective 'bico' has no use for them"):
        System("bico", "", entities=True)
