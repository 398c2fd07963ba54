"""Gaps between reverse tasks and their forward counterparts, against numbers worked out by hand."""

import made_up
import pytest

from bico_ext.reports.gap import gaps


def test_a_gap_compares_the_two_tasks_seed_by_seed():
    row = gaps(made_up.typed(made_up.results()))[3]
    assert (row.label, row.task, row.counterpart) == ("bico", "D2N-reverse", "N2D")
    assert row.forward == (0.4, 0.8)
    assert row.reverse == (0.1, 0.3)
    assert row.gap == pytest.approx((0.3, 0.5))
    assert row.forward_share == pytest.approx((0.5, 1.0)), "of a ceiling of 0.8"
    assert row.reverse_share == pytest.approx((0.2, 0.6)), "of a ceiling of 0.5"
    assert row.share_gap == pytest.approx((0.3, 0.4))


def test_old_results_have_gaps_but_no_shares():
    rows = gaps(made_up.typed(made_up.old_results()))
    assert [(row.task, row.counterpart, row.label) for row in rows] == [
        ("N2D-reverse", "D2N", "ntp"),
        ("N2D-reverse", "D2N", "bico"),
        ("D2N-reverse", "N2D", "ntp"),
        ("D2N-reverse", "N2D", "bico"),
    ]
    assert rows[1].gap == pytest.approx((0.6, 0.4))
    assert rows[1].forward_ceiling is rows[1].reverse_share is rows[1].share_gap is None


def test_a_ceiling_of_zero_gives_no_share():
    made = made_up.results()
    made["data"]["tasks"]["D2N-reverse"]["reachable"] = 0.0
    assert gaps(made_up.typed(made))[3].share_gap is None


def test_a_run_without_the_counterpart_does_not_count():
    made = made_up.results()
    del made["runs"][3]["tasks"]["N2D"]  # bico, seed 1
    assert gaps(made_up.typed(made))[3].reverse == (0.1,)
    for run in made["runs"]:
        run["tasks"] = {"N2D-reverse": run["tasks"]["N2D-reverse"]}
    assert gaps(made_up.typed(made)) == []


def test_other_tasks_name_their_counterpart():
    made = made_up.old_results({"ntp": {"next line": (0.75,), "previous line": (0.25,)}})
    assert gaps(made_up.typed(made)) == []
    asked = {"answer": "name", "n": 4, "reachable": 1.0}
    made |= {"data": {"name": "", "tasks": {"next line": asked, "previous line": asked | {"twin": "next line"}}}}
    (row,) = gaps(made_up.typed(made))
    assert (row.task, row.counterpart, row.gap) == ("previous line", "next line", (0.5,))
