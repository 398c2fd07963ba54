"""Reading results: what is broken is named in one sentence."""

import json

import made_up
import pytest

from bico_ext.reports.records import read_predictions, read_results, task_names


def test_reads_back_what_was_written(tmp_path):
    made = made_up.results()
    made_up.write(tmp_path, made)
    assert read_results(tmp_path) == made
    assert read_predictions(tmp_path, made) == made_up.predictions(made)


def test_no_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json: no such file; name folders that bico compare"):
        read_results(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"runs": [', "results.json is broken: Expecting value: line 1 column 11"),
        ("[]", "must hold an object with a list of one or more runs, got None"),
        ('{"runs": []}', "one or more runs, got \\[\\]"),
        ('{"runs": [{"tasks": {}}]}', "run 1 must be an object that names its objective"),
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
        read_predictions(tmp_path, made)


def test_predictions_may_be_missing_or_empty(tmp_path):
    assert read_predictions(tmp_path, made_up.results()) == []
    (tmp_path / "predictions.jsonl").write_text("")
    assert read_predictions(tmp_path, made_up.results()) == []


def test_the_answers_of_bico_evaluate_belong_to_its_model(tmp_path):
    row = {"task": "D2N", "prompt": "Who?", "target": " Ada", "completion": " Ada\u2028", "contains": True}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert read_predictions(tmp_path, {"runs": [{"objective": "path/to/model"}]}) == [
        row | {"objective": "path/to/model"}
    ]


def test_tasks_stand_in_their_order_then_the_unknown_ones():
    runs = [{"tasks": {"other": {}, "D2N-reverse": {}}}, {"tasks": {"N2D": {}, "more": {}}}]
    assert task_names(runs) == ["N2D", "D2N-reverse", "other", "more"]
