"""The script behind `make fuzz`: it counts, continues, and reports a problem that can be run again."""

import argparse
import json
import re

import fuzz
import pytest
from problems import Case
from random_problems import Layout, RandomProblem


@pytest.fixture
def run(tmp_path):
    def run(cases, seed=None):
        options = argparse.Namespace(cases=cases, seed=seed, output_dir=tmp_path)
        options.seed = fuzz.begin(options)["seed"]
        fuzz.work("portable", options)
        return json.loads((tmp_path / "results.json").read_text())

    return run


@pytest.fixture
def judged(monkeypatch):
    """The problems that were judged, and right."""
    problems = []
    monkeypatch.setattr(fuzz, "judge", lambda target, problem, how: problems.append(problem))
    monkeypatch.setattr(fuzz, "CHUNK", 8)
    monkeypatch.setattr("torch.use_deterministic_algorithms", lambda on: None)
    return problems


def test_it_continues_where_it_ended(run, judged):
    assert run(8, seed=3)["targets"]["portable"]["cases"] == len(judged) == 8
    record = run(20)["targets"]["portable"]
    assert (record["cases"], record["chunks"], record["failures"]) == (20, 3, [])
    assert len(judged) == 20
    assert len({str(problem) for problem in judged}) > 15, "each chunk has a seed of its own"
    with pytest.raises(SystemExit, match=r"results\.json has seed 3, not 4; remove it, or name another --output-dir"):
        run(20, seed=4)


def test_a_failure_is_shrunk_and_its_text_is_the_problem(run, judged, monkeypatch):
    def judge(target, problem, how):
        assert problem.case.window is None, "a wrong window"

    monkeypatch.setattr(fuzz, "judge", judge)
    record = run(8, seed=3)["targets"]["portable"]
    assert record["cases"] == 8
    report = record["failures"][0]["report"]
    assert "AssertionError: a wrong window" in report
    text = re.search(r"problem=(RandomProblem\(.*?),\n +how=", report, re.DOTALL)[1]
    problem = eval(text, {"RandomProblem": RandomProblem, "Case": Case, "Layout": Layout})
    assert (problem.case.window, problem.case.S, problem.runs, problem.layouts) == (1, 1, None, ())
