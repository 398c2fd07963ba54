"""Reading and writing fact data: every source of `load_facts`, and the message about a broken file."""

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bico_ext.facts.distractors import draw_distractors
from bico_ext.facts.jsonl import load_jsonl, parse_question
from bico_ext.facts.loader import load_facts
from bico_ext.facts.own import write_facts
from bico_ext.facts.types import TASKS, Example, FactData, Question, Task, counterpart_of


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pair(prompt: str, completion: str | list[str]) -> dict[str, str | list[str]]:
    return {"prompt": prompt, "completion": completion}


def test_answer_kinds():
    # N2D asks for the description and its reverse for the name. D2N and its reverse do the opposite.
    folder_tasks = load_facts("synthetic").tasks
    assert {name: task.answer for name, task in folder_tasks.items()} == {
        "N2D": "description",
        "D2N": "name",
        "N2D-reverse": "name",
        "D2N-reverse": "description",
    }
    assert tuple(folder_tasks) == TASKS


def test_file_is_training_data_without_tasks(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", pair("Ada is", " the founder."))
    assert load_facts(path) == FactData("mine.jsonl", (Example("Ada is", " the founder."),), {})


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # the home folder of Windows
    write_lines(tmp_path / "mine.jsonl", pair("Ada is", " the founder."))
    assert len(load_facts("~/mine.jsonl").train) == 1


@pytest.mark.parametrize("source", ["./nothing", "nothing/here/at/all", "facts.jsonl", "a/facts.jsonl", "~/no-such"])
def test_missing_path_is_not_taken_for_a_hub_name(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: pytest.fail("hub")))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_facts(source)


def test_jsonl_keeps_unusual_text(tmp_path):
    texts = [
        pair("Zoë Ødegård is", " the 日本 “quoted” 🎻 one."),
        pair("line\u2028separator\x85and\x0bmore", " one\u2029line"),  # str.splitlines cuts at each of these
        pair('"quotes" and \\ and \t', " tab\nand newline"),
        {"prompt": "extra keys", "completion": "", "id": 7},
    ]
    body = "\n".join(json.dumps(text, ensure_ascii=False) for text in texts)
    path = tmp_path / "facts.jsonl"
    others = (body.replace("\n", end) + end for end in ("\r\n", "\r"))  # of Windows, and of old systems
    for variant in (body, body + "\n", body + "\n\n  \n", "\ufeff" + body, *others):
        path.write_bytes(variant.encode("utf-8"))
        assert load_jsonl(path) == tuple(Example(text["prompt"], text["completion"]) for text in texts)


def test_jsonl_empty_file(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n\n")
    assert load_jsonl(tmp_path / "none.jsonl") == ()
    with pytest.raises(ValueError, match=r"none.jsonl: train holds no examples"):
        load_facts(tmp_path / "none.jsonl")


BROKEN = {
    "bad-json": (b'{"prompt": "a", "completion": " b"', "bad JSON"),
    "blank-line-inside": (b"", "bad JSON"),
    "not-an-object": (b'["a", " b"]', "expected an object"),
    "missing-completion": (b'{"prompt": "a", "answer": " b"}', "'completion' is missing, got 'prompt', 'answer'"),
    "missing-prompt": (b'{"completion": " b"}', "'prompt' is missing"),
    "number": (b'{"prompt": "a", "completion": 3}', "completion must be a string, got int 3"),
    "null": (b'{"prompt": null, "completion": " b"}', "prompt must be a string, got NoneType"),
    "empty-prompt": (b'{"prompt": "", "completion": " b"}', "prompt must not be empty"),
    "blank-prompt": (b'{"prompt": " \\n", "completion": " b"}', "prompt must not be empty"),
    "space-at-the-end": (b'{"prompt": "a is ", "completion": "b"}', "prompt must not end with a space"),
    "run-together": (b'{"prompt": "a is", "completion": "b"}', "run together as 'a isb'; start the completion"),
    "latin-1": ('{"prompt": "Zoë", "completion": " b"}'.encode("latin-1"), "expected UTF-8"),
    "half-surrogate": (b'{"prompt": "a \\ud83d", "completion": " b"}', "surrogate"),
}


@pytest.mark.parametrize(("line", "defect"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_line_is_named(line, defect, tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b'{"prompt": "ok", "completion": " ok"}\n' + line + b'\n{"prompt": "x", "completion": " y"}\n')
    with pytest.raises(ValueError, match=r"facts.jsonl, line 2: ") as error:
        load_jsonl(path)
    assert defect in str(error.value)


@pytest.mark.parametrize("name", ["facts.csv", "facts.TSV"])
def test_a_table_is_no_jsonl(tmp_path, name):
    (tmp_path / name).write_text("prompt,completion\na, b\n")
    with pytest.raises(ValueError, match=rf"{name}: expected JSON Lines, got a table; .* pandas.read_csv"):
        load_jsonl(tmp_path / name)


@pytest.mark.parametrize("header", ["prompt,completion", "id,prompt,completion"])
@pytest.mark.parametrize(
    ("name", "cause"), [("facts.csv", "the header subject"), ("facts.tsv", "a wife and a husband")]
)
def test_a_table_of_prompts_and_completions_is_refused_with_the_way_out(tmp_path, name, cause, header):
    """In a .tsv file, every prompt became a wife and its completion her husband, the header included."""
    (tmp_path / name).write_text(f"{header}\na, b\n".replace(",", "," if name.endswith("csv") else "\t"))
    with pytest.raises(ValueError, match=rf"line 1: .*{cause}.* belong in a .jsonl file, which pandas makes"):
        load_facts(tmp_path / name)


def test_completion_may_follow_a_quote_or_a_script_without_spaces(tmp_path):
    records = [
        pair('He said "', 'no".'),
        pair("東京は", "日本の首都です。"),
        pair("東京は", "IT の街"),
        pair("Q: who?\n", "Ada"),
    ]
    assert len(load_jsonl(write_lines(tmp_path / "facts.jsonl", *records))) == 4


def test_write_and_reload(tmp_path):
    facts = FactData(
        "odd",
        (Example('Zoë "Z"\u2028 is', " \\ the 🎻\n."), Example("no completion", "")),
        {"D2N": Task("D2N", "name", (Question("The 🎻 is", " Zoë"),))},
    )
    folder = tmp_path / "new" / "odd"
    write_facts(facts, folder)
    assert load_facts(folder) == facts
    assert sorted(os.listdir(folder)) == ["D2N.jsonl", "train.jsonl"]
    assert "Zoë" in (folder / "train.jsonl").read_text(encoding="utf-8")  # not escaped, so that people can read it
    # Keys without a value are left out.
    assert json.loads((folder / "D2N.jsonl").read_text(encoding="utf-8")) == pair("The 🎻 is", " Zoë")


def test_every_part_and_every_key_of_questions_survive_writing(tmp_path):
    asked = Question("The founder is", " Ada", entity="Ada", template="... is", distractor=" Bo")
    tasks = (
        Task("mother", "name", (asked,)),
        Task("motto", "description", (asked, Question("Say", " it"), Question("Sing", " it", also=(" this", " that")))),
        Task("hymn", "description", (asked,)),
        Task("mother-reverse", "description", (asked,)),  # two forward tasks ask for descriptions: no counterpart
        Task("motto-reverse", "description", (asked,), counterpart="hymn"),
        Task("hymn-reverse", "name", (asked,), counterpart=None),  # the rule would give it the counterpart "mother"
        Task("N2D", "name", (asked,)),  # a task of that name usually asks for descriptions
    )
    facts = FactData(
        "everything",
        train=(Example("a", " b"), Example("c", " d")),
        tasks={task.name: task for task in tasks},
        pretraining=(Example("e", " f"),),
        other_order=(Example("b", " a"),),
        one_order=(Example("a", " b"),),
    )
    write_facts(facts, tmp_path / "everything")
    assert load_facts(tmp_path / "everything") == facts


def test_synthetic_set_survives_writing(tmp_path):
    facts = load_facts("synthetic", seed=3)
    write_facts(facts, tmp_path / "synthetic")
    assert load_facts(tmp_path / "synthetic") == facts
    assert facts != load_facts("synthetic", seed=4)


def test_rewriting_removes_tasks_of_the_earlier_set(tmp_path):
    task = Task("D2N", "name", (Question("The founder is", " Ada"),))
    write_facts(FactData("a", (Example("x", " y"),), {"D2N": task}), tmp_path)
    write_facts(FactData("b", (Example("x", " z"),), {}), tmp_path)
    assert load_facts(tmp_path).tasks == {}
    assert load_facts(tmp_path).train == (Example("x", " z"),)


@pytest.mark.parametrize("failing", ["child.jsonl", "wife.jsonl", "train.jsonl"])
def test_interrupted_write_does_not_look_complete(failing, tmp_path, monkeypatch):
    asked = (Question("Ada is", " it"),)
    facts = FactData("a", (Example("x", " y"),), {name: Task(name, "name", asked) for name in ("child", "wife")})
    write_facts(facts, tmp_path)
    replace = os.replace

    def interrupted(source, target):
        if Path(target).name == failing:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_facts(facts, tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    with pytest.raises(FileNotFoundError, match="lacks"):
        load_facts(tmp_path)


@pytest.mark.parametrize("name", ["train", "pretrain", "one_order", "a/b", "", ".hidden", "..", "a\\b"])
def test_write_refuses_names_that_cannot_be_a_tasks_file(name, tmp_path):
    task = Task(name, "name", (Question("The founder is", " Ada"),))
    with pytest.raises(
        ValueError, match=r"data.tasks must give a file name <name>.jsonl other.*got " + re.escape(repr(name))
    ):
        write_facts(FactData("a", (Example("x", " y"),), {name: task}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_write_refuses_a_folder_whose_other_files_would_become_tasks(tmp_path):
    write_lines(tmp_path / "predictions.jsonl", pair("Ada is", " the founder."))
    with pytest.raises(ValueError, match=r"read as tasks, got predictions.jsonl in .*; remove them"):
        write_facts(FactData("a", (Example("x", " y"),), {}), tmp_path)
    assert os.listdir(tmp_path) == ["predictions.jsonl"]


def test_rewriting_removes_parts_of_the_earlier_set(tmp_path):
    text = (Example("x", " y"),)
    write_facts(FactData("a", text, {}, pretraining=text, other_order=text, one_order=text), tmp_path)
    write_facts(FactData("b", text, {}), tmp_path)
    assert os.listdir(tmp_path) == ["train.jsonl"]


@pytest.mark.parametrize(
    ("task", "answers", "counterpart"),
    [
        ("N2D", {"N2D": "description", "D2N": "name"}, None),
        ("N2D-reverse", {"N2D": "description", "D2N": "name", "N2D-reverse": "name", "x": "name"}, "D2N"),
        ("N2D-reverse", {"N2D-reverse": "name"}, None),
        ("m-reverse", {"m": "name", "m-reverse": "name"}, "m"),
        ("m-reverse", {"m": "name", "n": "name", "m-reverse": "name"}, None),
        ("m-reverse", {"m": "description", "m-reverse": "name"}, None),
        ("m-reverse", {"m": "name", "m-reverse": "description"}, None),
        ("reverse", {"forward": "name", "reverse": "name"}, "forward"),
    ],
)
def test_counterparts(task, answers, counterpart):
    assert counterpart_of(task, answers) == counterpart


def test_a_distractor_answers_another_entitys_question_in_the_same_template():
    asked = [
        Question(f"{template} of {entity} is", f" {template} {entity}", entity, f"{template} of ... is")
        for entity in "abcde"
        for template in ("house", "horse")
    ]
    drawn = draw_distractors(asked)
    assert [(one.prompt, one.completion) for one in drawn] == [(one.prompt, one.completion) for one in asked]
    for one in drawn:
        template, entity = one.distractor.split()
        assert template == one.prompt.split()[0]
        assert entity in "abcde"
        assert entity != one.entity
    assert drawn == draw_distractors(asked)
    assert drawn != draw_distractors(asked, seed=1)


def test_distractors_are_kept_and_never_right():
    given = Question("x is", " a", "x", "... is", distractor=" q")
    same = Question("y is", " a", "y", "... is")  # another entity, the same answer
    only = Question("z was", " b", "z", "... was")  # alone in its template
    drawn = draw_distractors([given, same, only])
    assert [one.distractor for one in drawn] == [" q", " b", " a"]
    assert draw_distractors([same])[0].distractor is None
    # Both answers about the entity are right, whichever question they belong to.
    two_answers = [Question("p", " a", "x"), Question("q", " b", "x"), Question("r", " c", "y")]
    for seed in range(5):
        assert [one.distractor for one in draw_distractors(two_answers, seed)][:2] == [" c", " c"]
    assert draw_distractors([]) == ()


@pytest.mark.parametrize("entity", ["x", None])
def test_a_distractor_is_never_another_right_answer(entity):
    asked = [
        Question("p", " a", entity, also=(" b", " c")),
        *(Question("q", f" {answer}", answer) for answer in "abcd"),
    ]
    for seed in range(10):
        drawn = draw_distractors(asked, seed)
        assert drawn[0].distractor == " d"
        assert drawn[0].accepted == (" a", " b", " c")
    of_the_entity = [Question("p", " b", "x"), *asked] if entity else asked
    for seed in range(10):
        assert draw_distractors(of_the_entity, seed)[0].distractor == " d"


def test_a_digest_outlives_the_renaming_of_fields():
    """Results files of version 1, which called a template "frame", hold this digest of the same facts."""
    assert load_facts("synthetic").digest() == "16343f73c9fa135f"


def test_only_other_right_answers_change_a_digest():
    """The first digest was computed before questions could have several right answers."""

    def digest(**more) -> str:
        asked = Question("A child of Ada is", " Bo", "Ada", **more)
        return FactData("", (Example("a", " b"),), {"t": Task("t", "name", (asked,))}).digest()

    assert digest() == digest(also=()) == "c3c55956e232f211"
    assert len({digest(), digest(also=(" Cy",)), digest(also=(" Cy", " Di")), digest(also=(" Di", " Cy"))}) == 4


@pytest.mark.parametrize(("old", "new"), [("frame", "template"), ("twin", "counterpart")])
def test_old_keys_of_questions_are_refused(old, new):
    with pytest.raises(ValueError, match=f"facts, line 1: key '{old}' is now called '{new}'; rename it"):
        parse_question({"prompt": "Ada is", "completion": " a pilot", old: None}, "facts, line 1")
