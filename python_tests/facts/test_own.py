"""Users' own facts, in a folder or in one file: what becomes of each line, and the message about a broken one."""

import pytest
from test_loader import pair, write_lines

from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import Example, FactData, Question, Task


def question(direction: str, prompt: str, completion: str, **more: str | None) -> dict[str, str | None]:
    return {"prompt": prompt, "completion": completion, "direction": direction, **more}


def test_folder_takes_the_tasks_that_are_there(tmp_path, caplog):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    write_lines(tmp_path / "N2D-reverse.jsonl", pair("The founder is", " Ada"))
    facts = load_facts(str(tmp_path))
    assert facts.tasks == {"N2D-reverse": Task("N2D-reverse", "name", (Question("The founder is", " Ada"),))}
    assert not caplog.records


def test_folder_takes_tasks_of_any_name_forward_ones_first(tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    for task in ("child-reverse", "D2N", "mother", "child", "motto"):
        answer = {"answer": "description"} if task == "motto" else {}
        write_lines(tmp_path / f"{task}.jsonl", {**pair("The founder is", " Ada"), **answer})
    facts = load_facts(tmp_path)
    assert [(task.name, task.answer, task.counterpart) for task in facts.tasks.values()] == [
        ("D2N", "name", None),
        ("child", "name", None),
        ("mother", "name", None),
        ("motto", "description", None),
        ("child-reverse", "name", None),  # D2N, child and mother all ask for names
    ]


def test_folder_reads_the_optional_keys_of_questions(tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    optional = {"entity": "Ada", "template": "... is", "distractor": " Bo"}
    write_lines(
        tmp_path / "a.jsonl", {**pair("The founder is", " Ada"), **optional, "note": 3, "answer": "description"}
    )
    write_lines(tmp_path / "b.jsonl", {**pair("The founder is", " Ada"), "entity": None})
    write_lines(tmp_path / "a-reverse.jsonl", {**pair("Ada is", " it"), "counterpart": "b"})
    write_lines(tmp_path / "b-reverse.jsonl", {**pair("Ada is", " it"), "counterpart": None})
    tasks = load_facts(tmp_path).tasks
    assert tasks["a"] == Task("a", "description", (Question("The founder is", " Ada", **optional),))
    assert tasks["b"] == Task("b", "name", (Question("The founder is", " Ada"),))
    assert (tasks["a-reverse"].counterpart, tasks["b-reverse"].counterpart) == ("b", None)


def test_a_question_may_have_several_right_answers(tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    write_lines(
        tmp_path / "child.jsonl",
        {"prompt": "A child of Ada is", "completion": [" Bo", " Cy", " Bo"], "entity": "Ada"},
        {"prompt": "A child of Di is", "completion": [" Ed"]},
    )
    asked = Question("A child of Ada is", " Bo", "Ada", also=(" Cy",))
    assert load_facts(tmp_path).tasks["child"].examples == (asked, Question("A child of Di is", " Ed"))
    path = write_lines(
        tmp_path / "facts.jsonl",
        pair("Ada is", " the founder."),
        {"prompt": "A child of Ada is", "completion": [" Bo", " Cy"], "direction": "forward", "entity": "Ada"},
    )
    assert load_facts(path).tasks["forward"].examples == (asked,)


def test_folder_reads_the_other_parts(tmp_path):
    for file in ("train", "pretrain", "other_order", "one_order"):
        write_lines(tmp_path / f"{file}.jsonl", pair(f"in {file}", " text"))
    facts = load_facts(tmp_path)
    assert facts == FactData(
        tmp_path.name,
        train=(Example("in train", " text"),),
        tasks={},
        pretraining=(Example("in pretrain", " text"),),
        other_order=(Example("in other_order", " text"),),
        one_order=(Example("in one_order", " text"),),
    )


def test_folder_without_training_texts(tmp_path):
    write_lines(tmp_path / "N2D.jsonl", pair("Ada is", " the founder."))
    with pytest.raises(FileNotFoundError, match=r"lacks train.jsonl; write your own facts there"):
        load_facts(tmp_path)


@pytest.mark.parametrize("file", ["train", "D2N", "mother-reverse", "pretrain", "other_order", "one_order"])
def test_empty_file(file, tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    (tmp_path / f"{file}.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=rf"{file}.jsonl: \S+ holds no examples; expected at least one line"):
        load_facts(tmp_path)


def test_a_full_stop_is_no_description(tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    for stop in (" .", [" the cook.", " ."]):
        write_lines(tmp_path / "N2D.jsonl", pair("Ada is", " the founder."), pair("Bo is", stop))
        with pytest.raises(
            ValueError, match=r"N2D.jsonl, line 2: completion must hold the answer, .* a full stop alone"
        ):
            load_facts(tmp_path)


def test_a_full_stop_may_be_a_name(tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("A sentence ends with", " a full stop."))
    write_lines(tmp_path / "sign.jsonl", pair("The sign for a full stop is", " ."))
    assert load_facts(tmp_path).tasks["sign"].examples == (Question("The sign for a full stop is", " ."),)


def test_hidden_files_are_no_tasks(tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    (tmp_path / "._train.jsonl").write_bytes(b"\x00\x05\x16\x07")  # macOS leaves such files beside copied ones
    assert load_facts(tmp_path).tasks == {}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (pair("x", ""), "completion must hold the answer, got a blank"),
        (pair("x", "  "), "completion must hold the answer, got a blank"),
        ({**pair("x", ""), "completion": []}, "completion must hold at least one right answer, got an empty list"),
        ({**pair("x", ""), "completion": [" y", 3]}, "completion must be a string, got int 3"),
        ({**pair("x", ""), "completion": [" y", [" z"]]}, "completion must be a string, got list [' z']"),
        ({**pair("x", ""), "completion": {"y": " z"}}, "completion must be a string, got dict {'y': ' z'}"),
        ({**pair("x", ""), "completion": [" y", " "]}, "completion must hold the answer, got a blank"),
        ({**pair("x", ""), "completion": [" y", "z"]}, "prompt and completion run together as 'xz'"),
        ({**pair("x", " y"), "entity": 3}, "entity must be a string, got int 3"),
        ({**pair("x", " y"), "template": ["..."]}, "template must be a string, got list"),
        ({**pair("x", " y"), "distractor": "\ud83d"}, "distractor holds half of a surrogate pair"),
        (
            {**pair("x", [" y", " z"]), "distractor": "z "},
            "distractor must be a wrong answer, got 'z ', which is a right",
        ),
        ({**pair("x", " y"), "distractor": " "}, "distractor must hold text, got ' '; leave it out"),
        ({**pair("x", " y"), "answer": "place"}, "answer must be 'name' or 'description', got 'place'"),
        (
            {**pair("x", " y"), "answer": "description"},
            "answer and counterpart must be the same as in the task's first line, {}, got {'answer': 'description'}",
        ),
        ({**pair("x", " y"), "counterpart": "nobody"}, "counterpart must be null or one of mother, got 'nobody'"),
        ({**pair("x", " y"), "counterpart": ["mother"]}, "counterpart must be null or one of mother, got ['mother']"),
        ([1], "expected an object"),
    ],
)
def test_broken_question_is_named(broken, message, tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", ""))  # a training text may have an empty completion
    write_lines(tmp_path / "mother.jsonl", pair("The founder is", " Ada"), broken)
    with pytest.raises(ValueError, match=r"mother.jsonl, line 2: ") as error:
        load_facts(tmp_path)
    assert message in str(error.value)


def test_a_file_with_directions_asks_both_ways(tmp_path):
    path = write_lines(
        tmp_path / "facts.jsonl",
        question("train", "Ada founded", " tin."),
        question("forward", "So Ada founded", " tin", entity="Ada", distractor=" zinc"),
        question("reverse", "Tin was founded by", " Ada"),
        pair("Bo founded", " zinc."),
        question("reverse", "Zinc was founded by", " Bo"),
    )
    assert load_facts(path) == FactData(
        "facts.jsonl",
        (Example("Ada founded", " tin."), Example("Bo founded", " zinc.")),
        {
            "forward": Task("forward", "name", (Question("So Ada founded", " tin", "Ada", None, " zinc"),)),
            "reverse": Task(
                "reverse",
                "name",
                (Question("Tin was founded by", " Ada"), Question("Zinc was founded by", " Bo")),
                counterpart="forward",
            ),
        },
    )


def test_a_file_with_directions_and_tasks(tmp_path):
    path = write_lines(
        tmp_path / "facts.jsonl",
        question("train", "Ada founded", " tin.", task="N2D"),
        question("reverse", "Tin was founded by", " Ada", task="N2D"),
        question("forward", "Ada founded", " tin.", task="N2D"),
        question("forward", "Zinc was founded by", " Bo", task="D2N"),
    )
    tasks = load_facts(path).tasks
    assert [(task.name, task.answer, task.counterpart, len(task.examples)) for task in tasks.values()] == [
        ("N2D", "description", None, 1),
        ("D2N", "name", None, 1),
        ("N2D-reverse", "name", "D2N", 1),
    ]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (question("backward", "x", " y"), "direction must be 'train', 'forward' or 'reverse', got 'backward'"),
        ({**pair("x", " y"), "direction": None}, "direction must be 'train', 'forward' or 'reverse', got None"),
        (question("reverse", "x", " y", task="m-reverse"), "task must be the name of the forward task"),
        (question("forward", "x", " y", task=" "), "task must be the name of the forward task"),
        (question("forward", "x", ""), "completion must hold the answer"),
        (pair("", " y"), "prompt must not be empty"),
        (pair("x", [" y", " z"]), "completion must be a string, got list [' y', ' z']"),  # training states one
        ([1], "expected an object with prompt and completion, got [1]"),
    ],
)
def test_broken_line_of_a_file_with_directions_is_named(broken, message, tmp_path):
    path = write_lines(tmp_path / "facts.jsonl", pair("Ada is", " it."), broken)
    with pytest.raises(ValueError, match=r"facts.jsonl, line 2: ") as error:
        load_facts(path)
    assert message in str(error.value)


def test_a_file_with_questions_only_cannot_be_trained_on(tmp_path):
    path = write_lines(tmp_path / "facts.jsonl", question("forward", "x", " y"))
    with pytest.raises(ValueError, match=r"facts.jsonl: train holds no examples"):
        load_facts(path)
