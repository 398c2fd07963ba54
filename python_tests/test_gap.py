"""Gaps worked out by hand on a results file in miniature."""

import pytest

from bico_ext.gap import gaps


def run(objective: str, seed: int, **contains: float) -> dict:
    return {
        "objective": objective,
        "seed": seed,
        "tasks": {task.replace("_", "-"): {"n": 10, "contains": value} for task, value in contains.items()},
    }


def about(reachable: float, twin: str | None = None) -> dict:
    return {"answer": "name", "twin": twin, "n": 10, "reachable": reachable, "frames": {}}


RUNS = [
    run("ntp", 0, D2N=0.9, N2D_reverse=0.0),
    run("infill", 0, D2N=0.8, N2D_reverse=0.5),
    run("infill", 1, D2N=1.0, N2D_reverse=0.9),
]
DATA = {"name": "d", "tasks": {"D2N": about(1.0), "N2D-reverse": about(0.8, "D2N")}}


def test_by_hand():
    ntp, infill = gaps({"data": DATA, "runs": RUNS})
    assert ntp == {
        "objective": "ntp",
        "task": "N2D-reverse",
        "twin": "D2N",
        "n": 1,
        "score": {"mean": 0.0, "stdev": None},
        "twin_score": {"mean": 0.9, "stdev": None},
        "gap": {"mean": 0.9, "stdev": None},
        "share": {"mean": 0.0, "stdev": None},
        "twin_share": {"mean": 0.9, "stdev": None},
        "share_gap": {"mean": 0.9, "stdev": None},
    }
    assert (infill["objective"], infill["n"]) == ("infill", 2)
    root = 0.5**0.5  # two values at a distance of 1 have this standard deviation
    spread = {
        "score": (0.7, 0.4 * root),
        "twin_score": (0.9, 0.2 * root),
        "gap": (0.2, 0.2 * root),  # .3 and .1: taken within a run
        "share": (0.875, 0.5 * root),  # .625 and 1.125, which is above the ceiling
        "twin_share": (0.9, 0.2 * root),
        "share_gap": (0.025, 0.3 * root),  # .175 and -.125
    }
    for name, (mean, stdev) in spread.items():
        assert infill[name] == pytest.approx({"mean": mean, "stdev": stdev}), name


def test_results_without_data_have_the_four_tasks_and_no_shares():
    runs = [run("bico", 0, N2D=0.5, D2N=0.9, N2D_reverse=0.4, D2N_reverse=0.7)]
    rows = gaps({"runs": runs})
    assert [(row["task"], row["twin"]) for row in rows] == [("N2D-reverse", "D2N"), ("D2N-reverse", "N2D")]
    assert [row["gap"]["mean"] for row in rows] == pytest.approx([0.5, -0.2])
    assert all(row[name] is None for row in rows for name in ("share", "twin_share", "share_gap"))


@pytest.mark.parametrize("task", ["D2N", "N2D-reverse"])
def test_a_ceiling_of_0_gives_no_shares(task):
    tasks = DATA["tasks"] | {task: DATA["tasks"][task] | {"reachable": 0.0}}
    row = gaps({"data": {"name": "d", "tasks": tasks}, "runs": RUNS})[1]
    assert row["share"] is None
    assert row["share_gap"] is None
    assert row["gap"]["mean"] == pytest.approx(0.2)


def test_the_data_decide_on_the_twins():
    data = {"name": "d", "tasks": {"next": about(1.0), "previous": about(1.0, "next"), "N2D-reverse": about(1.0)}}
    runs = [run("bico", 0, next=0.75, previous=0.5, D2N=0.9, N2D_reverse=0.4)]
    (row,) = gaps({"data": data, "runs": runs})
    assert (row["task"], row["twin"], row["gap"]["mean"]) == ("previous", "next", 0.25)


def test_runs_without_the_twin_are_left_out():
    runs = [*RUNS, run("infill", 2, N2D_reverse=0.1), run("bico", 0, N2D_reverse=0.1)]
    assert gaps({"data": DATA, "runs": runs}) == gaps({"data": DATA, "runs": RUNS})


def test_objectives_and_tasks_in_the_order_of_the_runs():
    runs = [
        run(objective, seed, N2D=1, D2N=1, D2N_reverse=0, N2D_reverse=0)
        for seed in (0, 1)
        for objective in ("ntp", "bico")
    ]
    rows = gaps({"runs": runs})
    assert [(row["objective"], row["task"], row["n"]) for row in rows] == [
        ("ntp", "D2N-reverse", 2),
        ("ntp", "N2D-reverse", 2),
        ("bico", "D2N-reverse", 2),
        ("bico", "N2D-reverse", 2),
    ]
