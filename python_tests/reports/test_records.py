"""Reading results: both versions can be read, and an error names the file and the defect."""

import json
from dataclasses import replace

import made_up
import pytest

from bico_ext.reports.lookups import losses, task_names
from bico_ext.reports.records import (
    BEFORE,
    Fluency,
    Run,
    Scores,
    Source,
    read_predictions,
    read_results,
    results_from_json,
    run_from_json,
)
from bico_ext.reports.version_1 import upgraded_run_file


def test_reads_back_what_was_written(tmp_path):
    made = made_up.results()
    made_up.write(tmp_path, made)
    results = read_results(tmp_path)
    assert results == made_up.typed(made)
    assert read_predictions(tmp_path, results) == made_up.predictions(made)
    assert results_from_json(json.loads(json.dumps(results.to_json())), "again") == results


def test_reads_back_whether_a_model_still_speaks(tmp_path):
    made = made_up.with_fluency(made_up.results())
    made_up.write(tmp_path, made)
    results = read_results(tmp_path)
    assert results.runs[0].system == BEFORE
    answers = {"The sky is": " blue.before fine-tuning", "Two plus two is": " | four <b>before fine-tuning"}
    assert results.runs[0].fluency == Fluency(4080, "prose of Python 3.11.7", "0123456789abcdef", answers, 10.0)
    assert results_from_json(json.loads(json.dumps(results.to_json())), "again") == results


def test_missing_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json: no such file; name folders that bico compare"):
        read_results(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"runs": [', "results.json is broken: Expecting value: line 1 column 11"),
        ('{"schema_version": 3, "runs": []}', "schema_version must be 1 or 2, got 3; update bico-ext"),
        ("[]", "must hold an object with a list of one or more runs, got None"),
        ('{"runs": []}', "one or more runs, got \\[\\]"),
        ('{"runs": [{"tasks": {}}]}', "run 1 must be an object that names its system"),
        ('{"runs": [{"objective": "ntp", "tasks": {}}]}', "run 1 \\(ntp\\) must hold scores by task, got {}"),
        (
            '{"runs": [{"objective": "ntp", "tasks": {"D2N": 1}}]}',
            "run 1 \\(ntp\\), D2N: lacks n, contains, exact_match",
        ),
        (
            '{"runs": [{"objective": "ntp", "tasks": {"D2N": {"n": 1, "contains": 1, "exact_match": 0, "bleu": ""}}}]}',
            "run 1 \\(ntp\\), D2N: lacks bleu_char, bleu$",
        ),
    ],
)
def test_broken_results_are_named(text, message, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"objective": "ntp"', "line 2: expected a JSON object, got"),
        ('["ntp"]', "line 2: expected a JSON object, got"),
        ('{"objective": "ntp", "task": "D2N"}', "line 2: lacks prompt, target, completion, contains"),
    ],
)
def test_broken_predictions_are_named(line, message, tmp_path):
    made = made_up.old_results()
    (tmp_path / "predictions.jsonl").write_text(json.dumps(made_up.predictions(made)[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=f"predictions.jsonl, {message}"):
        read_predictions(tmp_path, made_up.typed(made))


def test_predictions_may_be_missing_or_empty(tmp_path):
    assert read_predictions(tmp_path, made_up.typed(made_up.results())) == []
    (tmp_path / "predictions.jsonl").write_text("")
    assert read_predictions(tmp_path, made_up.typed(made_up.results())) == []


def test_the_answers_of_bico_evaluate_belong_to_its_model(tmp_path):
    row = {"task": "D2N", "prompt": "Who?", "target": " Ada", "completion": " Ada\u2028", "contains": True}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    evaluated = made_up.typed(made_up.old_results({"path/to/model": {"D2N": (0.5,)}}))
    assert read_predictions(tmp_path, evaluated) == [row | {"system": "path/to/model"}]


def test_known_tasks_come_first_in_their_order():
    some = Scores(1, 1.0, 1.0, 1.0, 1.0)
    runs = [Run("a", {"other": some, "D2N-reverse": some}), Run("b", {"N2D": some, "more": some})]
    assert task_names(runs) == ["N2D", "D2N-reverse", "other", "more"]


def test_files_of_version_1_can_be_read(tmp_path):
    """The file is as version 0.1.0 wrote it, with a system whose objective has another name."""
    scores = {"n": 2, "contains": 0.5, "exact_match": 0.0, "bleu_char": 0.25, "bleu": 0.125, "frames": {"... is": 0.5}}
    asked = {"answer": "name", "twin": "D2N", "n": 2, "reachable": 1.0}
    asked["frames"] = {"... is": {"n": 2, "reachable": 1.0, "unseen_words": ["is"]}}
    run = {"objective": "glm-abi", "trained": "abi", "seed": 0, "tasks": {"N2D-reverse": scores}}
    run["losses"] = [{"step": 25, "loss_abi": 1.5, "loss_ntp": 2.0}]
    old = {"settings": {"data": "synthetic"}, "data": {"name": "facts", "tasks": {"N2D-reverse": asked}}, "runs": [run]}
    old["failures"] = [{"objective": "ntp", "seed": 1, "error": "OSError"}]
    (tmp_path / "results.json").write_text(json.dumps(old))
    answer = {"objective": "glm-abi", "seed": 0, "task": "N2D-reverse", "frame": "... is"}
    answer |= {"prompt": "It is", "target": " Ada", "completion": " Ada", "contains": True}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(answer))

    results = read_results(tmp_path)
    (read,) = results.runs
    assert (read.system, read.objective, read.tasks["N2D-reverse"].templates) == ("glm-abi", "abi", {"... is": 0.5})
    assert losses(read, "the objective itself") == [(25, 1.5)]
    known = results.data.tasks["N2D-reverse"]
    assert (known.counterpart, known.templates["... is"].unseen_words) == ("D2N", ("is",))
    assert results.failures[0].system == "ntp"
    (prediction,) = read_predictions(tmp_path, results)
    assert (prediction["system"], prediction["template"]) == ("glm-abi", "... is")
    assert "objective" not in prediction
    written = json.loads(json.dumps(results.to_json()))
    assert written["schema_version"] == 2
    assert written["metrics"]["exact_match"] == "answer equals target"


def test_version_1_may_lack_counterparts_and_give_each_run_its_data(tmp_path):
    made = made_up.old_results()
    asked = {"answer": "name", "n": 10, "reachable": 1.0}
    data = {"name": "facts", "tasks": {"D2N": asked, "N2D-reverse": asked, "N2D": asked | {"twin": None}}}
    made["runs"] = [run | {"data": data} for run in made["runs"]]
    (tmp_path / "results.json").write_text(json.dumps(made | {"failures": None, "data": None}))
    results = read_results(tmp_path)
    assert results.failures == ()
    tasks = results.runs[0].data.tasks
    assert {name: task.counterpart for name, task in tasks.items()} == {"D2N": None, "N2D-reverse": "D2N", "N2D": None}


@pytest.mark.parametrize(
    "broken",
    [
        {"failures": [{"system": "ntp"}]},
        {"data": {"name": "facts", "tasks": {"D2N": {"answer": "name"}}}},
        {"data": {"tasks": {}}},
        {"settings": [1], "data": {"name": "facts", "tasks": [1]}},
    ],
)
def test_records_that_lack_a_part_are_named_by_their_file(broken, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up.results() | broken))
    with pytest.raises(ValueError, match=r"results\.json holds a record that lacks a part"):
        read_results(tmp_path)


def test_merged_results_survive_a_round_trip():
    results = replace(made_up.typed(made_up.results()), sources=(Source("folder", {}, {}),))
    assert results_from_json(json.loads(json.dumps(results.to_json())), "again") == results


def test_run_files_of_version_1_are_upgraded():
    scores = {"n": 2, "contains": 0.5, "exact_match": 0.0, "bleu_char": 0.25, "bleu": 0.125, "frames": {"... is": 0.5}}
    row = {"objective": "glm-abi", "seed": 0, "task": "D2N", "frame": "... is"}
    value = {"objective": "glm-abi", "trained": "abi", "seed": 0, "tasks": {"D2N": scores}, "predictions": [row]}
    value |= {"losses": [{"step": 25, "loss_abi": 1.5}], "causal": {"tasks": {"D2N": scores}, "predictions": [row]}}
    own, causal = upgraded_run_file(value)
    assert (own["system"], own["objective"], causal["system"]) == ("glm-abi", "abi", "glm-abi, asked causally")
    assert own["predictions"] == [{"system": "glm-abi", "seed": 0, "task": "D2N", "template": "... is"}]
    assert causal["predictions"][0]["system"] == "glm-abi, asked causally"
    assert run_from_json(own).tasks["D2N"].templates == run_from_json(causal).tasks["D2N"].templates == {"... is": 0.5}
    assert (run_from_json(own).losses, run_from_json(causal).losses) == (({"step": 25, "loss_abi": 1.5},), ())
