"""The names of the comparison's systems."""

import re

import pytest

from bico_ext.comparison.systems import SYSTEMS, System, select_systems
from bico_ext.objectives.registry import OBJECTIVES


def test_all_selects_every_system_and_every_objective_has_one():
    assert select_systems(["all"]) == list(SYSTEMS)
    assert {system.objective for system in SYSTEMS.values()} == set(OBJECTIVES)
    assert select_systems(["bico", "ntp"]) == ["bico", "ntp"]


def test_the_error_for_a_wrong_name_lists_the_systems():
    with pytest.raises(ValueError, match="got 'mlm'") as error:
        select_systems(["mlm"])
    for name, system in SYSTEMS.items():
        assert re.search(rf"^  {name} +{re.escape(system.summary)}$", str(error.value), re.MULTILINE), name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ntp", "mlm"], "systems must be 'all' or names from this list, got 'mlm'\n  ntp  .*"),
        (["all", "ntp"], "got 'all'"),
        (["ntp", "ntp"], "each once"),
        ([], "one or more"),
    ],
)
def test_other_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        select_systems(names)


def test_a_system_needs_a_known_objective():
    with pytest.raises(ValueError, match="objective must be one of"):
        System("mlm", "")


def test_only_an_objective_that_keeps_entities_whole_is_told_them():
    with pytest.raises(ValueError, match="entities must be False, as objective 'bico' does not use them"):
        System("bico", "", entities=True)
