"""Reading and writing fact data: every source of load_facts, and what a broken file is told."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bico_ext.data import TASKS, Example, FactData, Task, load_facts, load_jsonl, write_facts

BERGLUND = Path(
    os.environ.get("BICO_BERGLUND_DIR")
    or Path(__file__).parents[2] / "shared/data/reverse_experiments/june_version_7921032488"
)
needs_berglund = pytest.mark.skipif(
    not BERGLUND.is_dir(), reason=f"Berglund et al.'s data is not in {BERGLUND}; set BICO_BERGLUND_DIR to test with it"
)
BERGLUND_FILES = {
    "train": "all_prompts_train.jsonl",
    "N2D": "p2d_prompts_test.jsonl",
    "D2N": "d2p_prompts_test.jsonl",
    "N2D-reverse": "p2d_reverse_prompts_test.jsonl",
    "D2N-reverse": "d2p_reverse_prompts_test.jsonl",
}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def make_berglund(folder: Path) -> Path:
    """A folder of Berglund's layout; each file's one line says which split it belongs to."""
    folder.mkdir()
    for split, file in BERGLUND_FILES.items():
        write_lines(folder / file, pair(f"from {split}", f" answer of {split}."))
    return folder


def test_answer_kinds():
    # N2D asks for the description; its reverse asks for the name; D2N the other way round.
    folder_tasks = load_facts("synthetic").tasks
    assert {name: task.answer for name, task in folder_tasks.items()} == {
        "N2D": "description",
        "D2N": "name",
        "N2D-reverse": "name",
        "D2N-reverse": "description",
    }
    assert tuple(folder_tasks) == TASKS


def test_berglund_folder_maps_files_to_splits(tmp_path):
    facts = load_facts(make_berglund(tmp_path / "june"))
    assert facts.name == "june"
    assert facts.train == (Example("from train", " answer of train."),)
    assert {name: task.examples[0].prompt for name, task in facts.tasks.items()} == {
        name: f"from {name}" for name in TASKS
    }
    assert all(task.name == name for name, task in facts.tasks.items())


@needs_berglund
def test_real_berglund_set():
    facts = load_facts(BERGLUND)
    assert len(facts.train) == 3600
    assert {name: len(task.examples) for name, task in facts.tasks.items()} == dict.fromkeys(TASKS, 300)
    # First lines, copied by hand from the files.
    assert facts.train[1].prompt == "Ever heard of Daphne Barrington? They're the person who"
    assert facts.tasks["D2N"].examples[0].completion == " Uriah Hawthorne"
    assert facts.tasks["N2D-reverse"].examples[1].completion == " Daphne Barrington"
    assert facts.tasks["D2N-reverse"].examples[0].prompt == "The trailblazer known as Uriah Hawthorne was once"
    # The tasks of each pair ask for the same facts, in opposite directions.
    trained = "\n".join(example.text for example in facts.train)
    for task in facts.tasks.values():
        if task.answer == "name":
            assert all(example.completion in trained for example in task.examples)


def test_berglund_folder_lists_what_is_missing(tmp_path):
    folder = make_berglund(tmp_path / "june")
    (folder / "p2d_prompts_test.jsonl").unlink()
    (folder / "d2p_reverse_prompts_test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks p2d_prompts_test.jsonl, d2p_reverse_prompts_test.jsonl;"):
        load_facts(folder)


def test_own_folder_takes_the_tasks_that_are_there(tmp_path, caplog):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    write_lines(tmp_path / "N2D-reverse.jsonl", pair("The founder is", " Ada"))
    facts = load_facts(str(tmp_path))
    assert list(facts.tasks) == ["N2D-reverse"]
    assert facts.tasks["N2D-reverse"] == Task("N2D-reverse", "name", (Example("The founder is", " Ada"),))
    assert not caplog.records


def test_own_folder_names_files_it_does_not_know(tmp_path, caplog):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    write_lines(tmp_path / "n2d_reverse.jsonl", pair("The founder is", " Ada"))
    assert load_facts(tmp_path).tasks == {}
    assert "n2d_reverse.jsonl" in caplog.text


def test_two_layouts_in_one_folder(tmp_path):
    folder = make_berglund(tmp_path / "june")
    write_lines(folder / "train.jsonl", pair("Ada is", " the founder."))
    with pytest.raises(ValueError, match="separate folders"):
        load_facts(folder)


def test_file_is_training_data_without_tasks(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", pair("Ada is", " the founder."))
    assert load_facts(path) == FactData("mine.jsonl", (Example("Ada is", " the founder."),), {})


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # the home folder of Windows
    write_lines(tmp_path / "mine.jsonl", pair("Ada is", " the founder."))
    assert len(load_facts("~/mine.jsonl").train) == 1


@pytest.mark.parametrize(
    "source", ["./nothing", "nothing/here/at/all", "facts.jsonl", "a/facts.jsonl", "~/no-such", ""]
)
def test_missing_path_is_not_taken_for_a_hub_name(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: pytest.fail("hub")))
    if source == "":  # Path("") is the current folder, which holds no facts
        with pytest.raises(FileNotFoundError, match=r"lacks all_prompts_train.jsonl"):
            load_facts(source)
    else:
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
    for variant in (body, body + "\n", body + "\n\n  \n", "\ufeff" + body, body.replace("\n", "\r\n") + "\r\n"):
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


def test_completion_may_follow_a_quote_or_a_script_without_spaces(tmp_path):
    records = [
        pair('He said "', 'no".'),
        pair("東京は", "日本の首都です。"),
        pair("東京は", "IT の街"),
        pair("Q: who?\n", "Ada"),
    ]
    assert len(load_jsonl(write_lines(tmp_path / "facts.jsonl", *records))) == 4


@pytest.mark.parametrize("blank", ["", "  "])
def test_task_needs_answers(blank, tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", blank))  # fine here: a text all of prompt
    write_lines(tmp_path / "D2N.jsonl", pair("The founder is", " Ada"), pair("The founder is", blank))
    with pytest.raises(ValueError, match="D2N, line 2: completion must hold the answer"):
        load_facts(tmp_path)


def test_empty_task_file(tmp_path):
    write_lines(tmp_path / "train.jsonl", pair("Ada is", " the founder."))
    (tmp_path / "D2N.jsonl").touch()
    with pytest.raises(ValueError, match="D2N holds no examples"):
        load_facts(tmp_path)


def fake_hub(monkeypatch, load_dataset) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_hub_set(monkeypatch, tmp_path):
    local = make_berglund(tmp_path / "june")

    def load_dataset(name, *, data_files):
        assert name == "lberglund/reversal_curse"
        # `datasets` refuses split names that are not words joined by dots.
        assert all(split.replace("_", "").isalnum() for split in data_files)
        rows = {}
        for split, file in data_files.items():
            folder, _, base = file.partition("/")
            assert folder == "name_description_dataset"
            rows[split] = [json.loads(line) for line in (local / base).read_text().splitlines()]
        return rows

    fake_hub(monkeypatch, load_dataset)
    facts = load_facts("lberglund/reversal_curse")
    assert facts.name == "lberglund/reversal_curse"
    assert (facts.train, facts.tasks) == (load_facts(local).train, load_facts(local).tasks)


def test_hub_row_is_checked_too(monkeypatch):
    fake_hub(monkeypatch, lambda name, data_files: {split: [pair("ok", " ok"), {"text": "x"}] for split in data_files})
    with pytest.raises(ValueError, match="all_prompts_train, row 2: key 'prompt' is missing, got 'text'"):
        load_facts("someone/other_set")


def test_hub_failure_says_what_was_tried(monkeypatch):
    def load_dataset(name, data_files):
        raise ConnectionError("no route")

    fake_hub(monkeypatch, load_dataset)
    with pytest.raises(OSError, match=r"'data/typo' is no file or folder in .*all_prompts_train.*no route"):
        load_facts("data/typo")


def test_hub_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'no file or folder in .*pip install "bico-ext\[hub\]"'):
        load_facts("lberglund/reversal_curse")


def test_write_and_reload(tmp_path):
    facts = FactData(
        "odd",
        (Example('Zoë "Z"\u2028 is', " \\ the 🎻\n."), Example("no completion", "")),
        {"D2N": Task("D2N", "name", (Example("The 🎻 is", " Zoë"),))},
    )
    folder = tmp_path / "new" / "odd"
    write_facts(facts, folder)
    assert load_facts(folder) == facts
    assert sorted(os.listdir(folder)) == ["D2N.jsonl", "train.jsonl"]
    assert "Zoë" in (folder / "train.jsonl").read_text(encoding="utf-8")  # legible for whoever inspects the set


def test_synthetic_set_survives_writing(tmp_path):
    facts = load_facts("synthetic", seed=3)
    write_facts(facts, tmp_path / "synthetic")
    assert load_facts(tmp_path / "synthetic") == facts
    assert facts != load_facts("synthetic", seed=4)


def test_rewriting_removes_tasks_of_the_earlier_set(tmp_path):
    task = Task("D2N", "name", (Example("The founder is", " Ada"),))
    write_facts(FactData("a", (Example("x", " y"),), {"D2N": task}), tmp_path)
    write_facts(FactData("b", (Example("x", " z"),), {}), tmp_path)
    assert load_facts(tmp_path).tasks == {}
    assert load_facts(tmp_path).train == (Example("x", " z"),)


@pytest.mark.parametrize("failing", ["N2D.jsonl", "train.jsonl"])
def test_interrupted_write_does_not_look_complete(failing, tmp_path, monkeypatch):
    facts = load_facts("synthetic")
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


def test_write_refuses_unknown_tasks(tmp_path):
    task = Task("P2D", "name", (Example("The founder is", " Ada"),))
    with pytest.raises(ValueError, match="named after N2D, D2N, N2D-reverse, D2N-reverse, got P2D"):
        write_facts(FactData("a", (Example("x", " y"),), {"P2D": task}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
