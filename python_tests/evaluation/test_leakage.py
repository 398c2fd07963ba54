"""The leakage check finds nothing in sound data, and exactly the leaks that are planted."""

import dataclasses

import pytest

from bico_ext.evaluation.leakage import Leak, leakage
from bico_ext.facts.synthetic import generate
from bico_ext.facts.types import Example, FactData, Question, Task

NAME_FIRST = Question("Who is Ada Byron? She is", " the first programmer.", "Ada Byron")
NAME_FIRST_AGAIN = Question("Ada Byron was known for", " writing the first program.", "Ada Byron")
REVERSE = Question("Tell me of the first programmer:", " Ada Byron", "Ada Byron")
DESCRIPTION_FIRST = Question("The last knight has the name", " Bob Hart", "Bob Hart")
NAMED_AT_LAST = Question("The one who programmed before all others has the name", " Ada Byron", "Ada Byron")
REVERSE_NAMED = Question("Now Bob Hart,", " the last knight.", "Bob Hart")
REVERSE_NAMED_AGAIN = Question("Then Bob Hart was", " a knight who rode.", "Bob Hart")
TASKS = {
    "N2D": Task("N2D", "description", (NAME_FIRST, NAME_FIRST_AGAIN)),
    "D2N": Task("D2N", "name", (DESCRIPTION_FIRST, NAMED_AT_LAST)),
    "N2D-reverse": Task("N2D-reverse", "name", (REVERSE,), "D2N"),
    "D2N-reverse": Task("D2N-reverse", "description", (REVERSE_NAMED, REVERSE_NAMED_AGAIN), "N2D"),
}
SOUND = (
    Example("Ada Byron, it is said, was", " the first programmer."),
    Example("Ever heard of Ada Byron? Her fame is from", " writing the first program. Bob Hart came later"),
    Example("The last knight was", " Bob Hart."),
    Example("Here is", " Cy"),
)


def facts(*texts: str, **fields) -> FactData:
    return FactData("by hand", (*SOUND, *(Example(text, "") for text in texts)), TASKS, **fields)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_synthetic_set_is_sound(seed):
    assert leakage(generate(seed)) == []


@pytest.mark.parametrize("pretraining", [False, True])
def test_a_leak_in_the_synthetic_set_is_found(pretraining):
    data = generate(0)
    question = data.tasks["N2D-reverse"].examples[7]
    leak = Example("By the way,", f"{data.tasks['N2D'].examples[7].completion.upper()} That is{question.completion}.")
    data = (
        dataclasses.replace(data, pretraining=(leak,))
        if pretraining
        else dataclasses.replace(data, train=(*data.train[:100], leak, *data.train[100:]))
    )
    same_entity = [one for one in data.tasks["N2D-reverse"].examples if one.entity == question.entity]
    assert leakage(data) == [Leak("N2D-reverse", one, leak.text) for one in same_entity]
    assert len(same_entity) == 5


def test_inverting_the_synthetic_texts_leaks_every_reverse_question():
    data = generate(0)
    inverted = tuple(Example(example.completion.strip(), f" {example.prompt}") for example in data.train)
    leaked = {(leak.task, leak.question) for leak in leakage(dataclasses.replace(data, train=inverted))}
    reverse = [name for name in data.tasks if name.endswith("-reverse")]
    assert leaked == {(name, question) for name in reverse for question in data.tasks[name].examples}


def test_the_hand_made_set_is_sound():
    assert leakage(facts()) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The FIRST programmer: Ada BYRON", [("N2D-reverse", REVERSE)]),
        ("Writing the first program made Ada Byron famous", [("N2D-reverse", REVERSE)]),  # another template's answer
        ("Ada Byron was the first programmer, was Ada Byron.", [("N2D-reverse", REVERSE)]),  # also the target twice
        ("The first programmer, Ada Byron, was the first programmer", [("N2D-reverse", REVERSE)]),
        ("Ada Byron, yes, Ada Byron", []),  # a name does not give itself away
        ("The last knight, a knight who rode", []),  # nor does one description give away another
        ("Bob Hart was the last knight of all", [("D2N-reverse", REVERSE_NAMED)]),
        ("Ada Byron was not the last knight", []),
        ("the first programmer. Bob Hart", []),
        ("Tell me of the first programmer: who", [("N2D-reverse", REVERSE)]),  # the prompt without the answer
        ("So: Ada Byron was known for it", [("N2D", NAME_FIRST_AGAIN)]),
        ("So: ada byron was known for it", []),  # a prompt is compared verbatim
        ("King Ada Byron was known for it", []),  # about somebody else
        ("King Ada Byron was known. \u201cAda Byron was known for it", [("N2D", NAME_FIRST_AGAIN)]),
        ("As we know, Ada Byron was known for it", [("N2D", NAME_FIRST_AGAIN)]),
        ("O'Ada Byron was known for it", []),
        ("Ada Byron was known forever", []),  # only whole words count
        ("Bobart Hart, not Bob Harts, was the last knight", []),
        ("Tell me of the first programmer: Ada Byron", [("N2D-reverse", REVERSE)]),  # both rules, one leak
    ],
)
def test_planted(text, found):
    assert leakage(facts(text)) == [Leak(task, question, text) for task, question in found]


def test_the_other_order_may_answer_questions_but_not_ask_them():
    text = (Example("The first programmer was", " Ada Byron"),)
    assert leakage(facts(other_order=text)) == []
    question = Example(REVERSE.prompt, " Ada Byron")
    assert leakage(facts(other_order=(question,))) == [Leak("N2D-reverse", REVERSE, question.text)]
    assert len(leakage(facts(pretraining=text))) == 1


def test_without_an_entity_only_the_prompt_is_looked_for():
    unknown = dataclasses.replace(REVERSE, entity=None)
    tasks = TASKS | {"N2D-reverse": dataclasses.replace(TASKS["N2D-reverse"], examples=(unknown,))}
    planted = ("The first programmer was Ada Byron", "Tell me of the first programmer: I ask")
    data = dataclasses.replace(facts(*planted), tasks=tasks)
    assert leakage(data) == [Leak("N2D-reverse", unknown, planted[1])]


def test_without_a_forward_task_only_the_name_in_the_prompt_is_given():
    planted = (
        "Bob Hart was the last knight",
        "Bobs were the last knight",
        "A last stand: Bob Hart was the last knight",
    )
    data = dataclasses.replace(facts(*planted), tasks={"D2N-reverse": TASKS["D2N-reverse"]})
    assert [leak.text for leak in leakage(data)] == [planted[0], planted[2]]
    unnamed = dataclasses.replace(REVERSE_NAMED, prompt="Now this one,")
    data = dataclasses.replace(data, tasks={"D2N-reverse": Task("D2N-reverse", "description", (unnamed,), "N2D")})
    assert leakage(data) == []


def test_a_reverse_task_may_have_any_name_if_it_has_a_counterpart():
    tasks = {"N2D": TASKS["N2D"], "back": Task("back", "name", (REVERSE,), "D2N")}
    text = "The first programmer was Ada Byron"
    assert leakage(dataclasses.replace(facts(text), tasks=tasks)) == [Leak("back", REVERSE, text)]


def test_a_reverse_task_without_a_counterpart_is_known_by_its_name():
    own = {
        "capital": Task("capital", "name", (Question("Ruritania's capital is", " Zenda", "Ruritania"),)),
        "capital-reverse": Task("capital-reverse", "name", (Question("Zenda rules", " Ruritania", "Ruritania"),)),
    }
    text = Example("Zenda lies in", " Ruritania")
    (leak,) = leakage(FactData("own", (text, Example("Ruritania has", " Zenda")), own))
    assert leak == Leak("capital-reverse", own["capital-reverse"].examples[0], text.text)


def test_a_forward_task_in_the_words_of_training_asks_for_memory():
    asked = (Question("Ada's cat is", " Bo", "Ada"), Question("Cy's cat is", " Dan", "Cy"))
    reverse = Task("cat-reverse", "name", (Question("Bo belongs to", " Ada", "Ada"),), "cat")
    tasks = {"cat": Task("cat", "name", asked), "cat-reverse": reverse}
    first, second = Example("Ada's cat is", " Bo."), Example("Cy's cat is", " Dan.")
    assert leakage(FactData("all", (first, second), tasks)) == []
    assert leakage(FactData("one", (first,), tasks)) == [Leak("cat", asked[0], first.text)]
    restated = Example("Bo belongs to", " Ada.")
    assert leakage(FactData("reverse", (first, second, restated), tasks)) == [
        Leak("cat-reverse", reverse.examples[0], restated.text)
    ]


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("Ada's son is Bo", True),
        ("Ada's daughter is Cy", True),
        ("Ada or Eve has a child, Cy", True),
        ("Eve's child is Bo", True),  # Eve is another right answer to the forward question about Bo
        ("Bo is a child of Ada", False),
        ("Bo is the brother of Cy, and Cy of Bo", False),  # one right answer does not give away another
    ],
)
def test_a_text_leaks_if_it_gives_away_any_right_answer(text, leaks):
    forward = (
        Question("Bo's parent is", " Ada", "Bo", also=(" Eve",)),
        Question("Bo's best friends are", " Cy", "Bo"),
    )
    reverse = Question("A child of Ada is", " Bo", "Bo", also=(" Cy",))
    tasks = {
        "parent": Task("parent", "name", forward),
        "parent-reverse": Task("parent-reverse", "name", (reverse,), "parent"),
    }
    expected = [Leak("parent-reverse", reverse, text)] if leaks else []
    assert leakage(FactData("by hand", (Example(text, ""),), tasks)) == expected


def test_a_forward_task_in_the_words_of_training_may_be_trained_on_any_right_answer():
    asked = Question("A child of Ada is", " Bo", "Ada", also=(" Cy",))
    task = {"child": Task("child", "name", (asked,))}
    assert leakage(FactData("by hand", (Example("A child of Ada is", " Cy."),), task)) == []
    wrong = Example("A child of Ada is", " Eve.")
    assert leakage(FactData("by hand", (wrong,), task)) == [Leak("child", asked, wrong.text)]
