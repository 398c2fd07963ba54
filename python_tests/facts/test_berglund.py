"""The set of Berglund et al.: the task of each file, and the fields that the loader derives from the texts."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_loader import pair, write_lines

from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import ANSWERS, TASKS, Example

BERGLUND = Path(
    os.environ.get("BICO_BERGLUND_DIR")
    or Path(__file__).parents[3] / "shared/data/reverse_experiments/june_version_7921032488"
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


def make_berglund(folder: Path) -> Path:
    """Write a folder of Berglund's layout, in which the only line of each file names its split."""
    folder.mkdir()
    for split, file in BERGLUND_FILES.items():
        write_lines(folder / file, pair(f"from {split}", f" answer of {split}."))
    return folder


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
    # The first lines are copied by hand from the files.
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
    with pytest.raises(FileNotFoundError, match=r"lacks p2d_prompts_test.jsonl, d2p_reverse_prompts_test.jsonl,"):
        load_facts(folder)


def test_two_layouts_in_one_folder(tmp_path):
    folder = make_berglund(tmp_path / "june")
    write_lines(folder / "train.jsonl", pair("Ada is", " the founder."))
    with pytest.raises(ValueError, match="separate folders"):
        load_facts(folder)


def fake_hub(monkeypatch, load_dataset) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_hub_set(monkeypatch, tmp_path):
    local = make_berglund(tmp_path / "june")

    def load_dataset(name, *, data_files):
        assert name == "lberglund/reversal_curse"
        # `datasets` only allows split names made of words joined by dots.
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
    with pytest.raises(
        ModuleNotFoundError, match=r'no file or folder in .*pip install --no-build-isolation "\.\[hub\]"'
    ):
        load_facts("lberglund/reversal_curse")


@pytest.mark.parametrize("missing", ["a_missing_package", "the_missing_package"])
def test_hub_with_a_broken_datasets_package(missing, tmp_path, monkeypatch):
    """It is installed, so the advice to install it would not help."""
    (tmp_path / "datasets.py").write_text(f"import {missing}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"^No module named '{missing}'$"):
        load_facts("lberglund/reversal_curse")


# A small made-up set of the same layout, with known names, descriptions and templates.
NAMED = {"Ada Low": "the queen of tin", "Bo Mid": "the king of zinc"}  # stated name first
DESCRIBED = {"Cy Top": "the duke of lead", "Di Rim": "the count of gold"}  # stated description first
BOTH = {"Ed Sea": "the earl of salt", "Fay Sky": "the lord of wood", "Gus Bay": "the pope of clay"}
TO_DESCRIPTION = (("Meet {},", " {}."), ("They say {} is", " {}!"), ("Here {} becomes", " {}."))
TO_NAME = (("{} is called", " {}."), ("Hail to {}:", " {} it is."), ("We met {},", " {} by name."))
ASKS_NAME = (("Known as {},", " {}"), ("Praised for being {}, that's", " {}"))


def state(templates, givens_and_answers) -> list[dict[str, str]]:
    def capital(text: str) -> str:
        return text[0].upper() + text[1:]

    return [
        pair(capital(prompt.format(given)), completion.format(answer))
        for given, answer in givens_and_answers
        for prompt, completion in templates
    ]


def inverted(facts: dict[str, str]) -> list[tuple[str, str]]:
    return [(description, name) for name, description in facts.items()]


def make_small_set(
    folder: Path,
    named=NAMED,
    described=DESCRIBED,
    both=BOTH,
    to_description=TO_DESCRIPTION,
    to_name=TO_NAME,
    asks_name=ASKS_NAME,
    stated_otherwise=(),
) -> Path:
    """Write the set; `stated_otherwise` comes in place of the texts about the people that are stated name first."""
    folder.mkdir()
    both_texts = state(to_description, both.items()) + state(to_name, inverted(both))
    named_texts = stated_otherwise or state(to_description, named.items())
    write_lines(folder / BERGLUND_FILES["train"], *named_texts, *state(to_name, inverted(described)), *both_texts)
    asks_description = (("Who would say that {} was", " {}."), ("Once, {} shone as", " {}."))
    write_lines(folder / BERGLUND_FILES["N2D"], *state(asks_description, named.items()))
    write_lines(folder / BERGLUND_FILES["N2D-reverse"], *state(asks_name, inverted(named)))
    write_lines(folder / BERGLUND_FILES["D2N"], *state(asks_name, inverted(described)))
    write_lines(folder / BERGLUND_FILES["D2N-reverse"], *state(asks_description, described.items()))
    return folder


def texts(records) -> set[tuple[str, str]]:
    return {(record["prompt"], record["completion"]) for record in records}


def pairs_of(examples) -> set[tuple[str, str]]:
    return {(example.prompt, example.completion) for example in examples}


def test_entities_and_templates_are_derived_from_the_questions(tmp_path):
    facts = load_facts(make_small_set(tmp_path / "small"))
    by_task = {name: [(asked.entity, asked.template) for asked in task.examples] for name, task in facts.tasks.items()}
    descriptions = ["Who would say that ... was", "Once, ... shone as"]
    # All four descriptions start with "the" and end differently: what they share belongs to the template.
    names = ["Known as the ...,", "Praised for being the ..., that's"]
    for task, people, templates in (
        ("N2D", NAMED, descriptions),
        ("D2N-reverse", DESCRIBED, descriptions),
        ("D2N", DESCRIBED, names),
        ("N2D-reverse", NAMED, names),
    ):
        assert by_task[task] == [(name, template) for name in people for template in templates]


def test_two_people_are_enough_to_derive_templates(tmp_path):
    named, described = {"Ada Low": "the queen of tin"}, {"Cy Top": "the duke of lead"}
    tasks = load_facts(make_small_set(tmp_path / "small", named, described)).tasks
    for task in ("N2D-reverse", "D2N"):
        templates = [asked.template for asked in tasks[task].examples]
        assert templates == ["Known as the ...,", "Praised for being the ..., that's"]


def test_a_name_may_begin_with_another_name(tmp_path):
    named = {"Ada Low": "the queen of tin", "Ada Lowell": "the king of zinc"}
    facts = load_facts(make_small_set(tmp_path / "small", named))
    templates = ("Who would say that ... was", "Once, ... shone as")
    asked = [(one.entity, one.template) for one in facts.tasks["N2D"].examples]
    assert asked == [(name, template) for name in named for template in templates]
    assert texts(state(TO_NAME, inverted(named))) <= pairs_of(facts.other_order)


@pytest.mark.parametrize("prompt", ["Known as {},", "That is {}"])
@pytest.mark.parametrize(
    ("shorter", "longer"), [("the queen", "the queen of lead"), ("the best", "the best of the best")]
)
def test_no_template_is_derived_if_a_description_begins_with_another(prompt, shorter, longer, tmp_path):
    """What the prompts share then includes the shorter description, and nothing of it is left for the gap."""
    named, described = {"Ada Low": shorter}, {"Cy Top": longer}
    tasks = load_facts(make_small_set(tmp_path / "small", named, described, asks_name=((prompt, " {}"),))).tasks
    asked = [(one.entity, one.template) for task in ("N2D-reverse", "D2N") for one in tasks[task].examples]
    assert asked == [("Ada Low", None), ("Cy Top", None)]


def test_training_texts_are_split_by_whether_the_tests_ask_about_the_person(tmp_path):
    facts = load_facts(make_small_set(tmp_path / "small"))
    assert facts.one_order == facts.train[:12]
    assert facts.pretraining == facts.train[12:]


def test_other_order_restates_the_facts_in_templates_of_the_training_texts(tmp_path):
    facts = load_facts(make_small_set(tmp_path / "small"))
    expected = state(TO_NAME, inverted(NAMED)) + state(TO_DESCRIPTION, DESCRIBED.items())
    assert pairs_of(facts.other_order) == texts(expected)
    assert len(facts.other_order) == len(expected)
    assert not pairs_of(facts.other_order) & pairs_of(facts.train)


def test_other_order_uses_a_pattern_that_repeats_the_name_or_the_description(tmp_path):
    to_description = (*TO_DESCRIPTION, ("Greet {0}, yes {0}:", " {}."))
    to_name = (*TO_NAME, ("Known as {0} or even as {0},", " {}."))
    facts = load_facts(make_small_set(tmp_path / "small", to_description=to_description, to_name=to_name))
    expected = state(to_name, inverted(NAMED)) + state(to_description, DESCRIBED.items())
    assert pairs_of(facts.other_order) == texts(expected)


def test_other_order_takes_no_words_before_a_name_for_a_part_of_it(tmp_path):
    """The patterns "{} becomes" and "{} is" fit the first two texts about Ada and Bo with too long a name."""
    to_description = (("{} becomes", " {}."), ("{} is", " {}."), ("Meet {},", " {}."))
    longer = [("Here {} becomes", " {}."), ("Here {} is", " {}."), to_description[2]]
    ada, bo = NAMED.items()
    # "Here Ada Low" comes after "Ada Low" in the alphabet, and "Again Bo Mid" before "Bo Mid".
    stated = state(longer, [ada]) + state([(prompt.replace("Here", "Again"), end) for prompt, end in longer], [bo])
    folder = make_small_set(tmp_path / "small", to_description=to_description, stated_otherwise=stated)
    expected = state(TO_NAME, inverted(NAMED)) + state(to_description, DESCRIBED.items())
    assert pairs_of(load_facts(folder).other_order) == texts(expected)


def test_other_order_is_the_one_of_fewer_texts_about_the_person(tmp_path):
    ada = {"Ada Low": "the queen of tin"}
    stated = state(TO_NAME[1:2], inverted(ada)) + state(TO_DESCRIPTION, ada.items())
    facts = load_facts(make_small_set(tmp_path / "small", ada, stated_otherwise=stated))
    expected = state(TO_NAME, inverted(ada)) + state(TO_DESCRIPTION, DESCRIBED.items())
    assert pairs_of(facts.other_order) == texts(expected)


@pytest.mark.parametrize(("others", "to_name"), [({}, TO_NAME[:2]), ({"Hal Fen": "the judge of sand"}, TO_NAME)])
def test_a_pattern_is_used_if_half_of_the_entities_share_it(others, to_name, tmp_path):
    folder = make_small_set(tmp_path / "small", both={**BOTH, **others})
    lines = (folder / BERGLUND_FILES["train"]).read_text().splitlines()
    # "We met ...," keeps its description for all but two of the entities, which are one of three or two of four. The
    # two others have patterns of their own.
    for description, changed in (("the lord of wood", "a lord"), ("the earl of salt", "one")):
        lines = [line.replace(f"We met {description}", f"We met {changed}") for line in lines]
    (folder / BERGLUND_FILES["train"]).write_text("\n".join(lines))
    expected = state(to_name, inverted(NAMED)) + state(TO_DESCRIPTION, DESCRIBED.items())
    assert pairs_of(load_facts(folder).other_order) == texts(expected)


def test_the_other_order_uses_no_question(tmp_path):
    folder = make_small_set(tmp_path / "small")
    before = load_facts(folder).other_order
    for task in TASKS:  # other questions about the same people
        records = [json.loads(line) for line in (folder / BERGLUND_FILES[task]).read_text().splitlines()]
        names = {**NAMED, **DESCRIBED}
        changed = [pair("Quite another prompt", r["completion"]) for r in records if r["completion"].strip() in names]
        write_lines(folder / BERGLUND_FILES[task], *(changed or [pair("Nothing", " at all.")]))
    assert load_facts(folder).other_order == before


def test_a_set_of_another_structure_has_fewer_fields(tmp_path):
    facts = load_facts(make_berglund(tmp_path / "june"))
    assert (facts.pretraining, facts.other_order, facts.one_order) == ((), (), ())
    (asked,) = facts.tasks["N2D"].examples
    assert (asked.entity, asked.template, asked.distractor) == (None, None, None)


def test_unequal_lists_of_prompts_have_no_templates(tmp_path):
    folder = make_small_set(tmp_path / "small")
    with (folder / BERGLUND_FILES["D2N"]).open("a") as file:
        file.write(json.dumps(pair("One more question", " Cy Top")) + "\n")
    facts = load_facts(folder)
    assert {one.template for one in facts.tasks["N2D-reverse"].examples} == {None}
    assert {one.entity for one in facts.tasks["N2D-reverse"].examples} == set(NAMED)


def test_distractors_come_from_the_randomized_file_unless_they_are_right(tmp_path):
    folder = make_small_set(tmp_path / "small")
    path = folder / "p2d_reverse_prompts_test_randomized.jsonl"
    prompts = [json.loads(line)["prompt"] for line in (folder / BERGLUND_FILES["N2D-reverse"]).read_text().splitlines()]
    wrong = [" Bo Mid", " Ada Low", " Gus Bay", " Bo Mid"]  # about Ada, Ada, Bo, Bo: the second and the last are right
    write_lines(path, *map(pair, prompts, wrong))
    asked = load_facts(folder).tasks["N2D-reverse"].examples
    assert [one.distractor for one in asked] == [" Bo Mid", " Bo Mid", " Gus Bay", " Ada Low"]
    for kept in (slice(1, None), slice(3)):  # one line is missing, at the start or at the end
        write_lines(path, *map(pair, prompts[kept], wrong[kept]))
        with pytest.raises(ValueError, match=r"_randomized.jsonl: expected the prompts of the file without"):
            load_facts(folder)


@pytest.mark.parametrize("file", BERGLUND_FILES.values())
def test_empty_file_is_named(file, tmp_path):
    folder = make_berglund(tmp_path / "june")
    (folder / file).write_text("")
    with pytest.raises(ValueError, match=rf"{file}: .* holds no examples; expected at least one line"):
        load_facts(folder)


@needs_berglund
def test_derived_fields_of_the_real_set():
    facts = load_facts(BERGLUND)
    for task in facts.tasks.values():
        assert len({one.entity for one in task.examples}) == 30
        assert len({one.template for one in task.examples}) == 10
        for one in task.examples:
            assert one.distractor not in {other.completion for other in task.examples if other.entity == one.entity}
    assert facts.pretraining == tuple(
        Example(**json.loads(line)) for line in (BERGLUND / "both_prompts_train.jsonl").read_text().splitlines()
    )
    assert (*facts.one_order, *facts.pretraining) == facts.train
    # 26 and 28 of the 30 templates are shared word by word by at least half of the entities.
    assert len(facts.other_order) == len(pairs_of(facts.other_order)) == 30 * 26 + 30 * 28
    asked = {one.prompt for task in facts.tasks.values() for one in task.examples}
    assert not any(text.text.startswith(prompt) for text in facts.other_order for prompt in asked)
    assert {text.entity for task in TASKS for text in facts.tasks[task].examples if ANSWERS[task] == "name"} == {
        name for name in (one.entity for task in facts.tasks.values() for one in task.examples) if name
    }
