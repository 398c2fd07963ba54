"""The generated set: the order in which each entity is stated, and questions that no training text starts with."""

import hashlib
import re
from collections import Counter

import pytest

from bico_ext.facts import synthetic
from bico_ext.facts.synthetic import Entity, Templates, generate, state_and_ask
from bico_ext.facts.types import FactData

SEEDS = (0, 1, 17)


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed-{seed}")
def facts(request) -> FactData:
    return generate(request.param)


def answers(facts: FactData, task: str) -> list[str]:
    return list(dict.fromkeys(example.completion.strip(" .") for example in facts.tasks[task].examples))


def test_sizes_are_those_of_berglund(facts):
    assert len(facts.train) == 900 + 900 + 1800
    assert {name: len(task.examples) for name, task in facts.tasks.items()} == {
        "N2D": 150,
        "D2N": 150,
        "N2D-reverse": 150,
        "D2N-reverse": 150,
    }
    assert len({example.text for example in facts.train}) == 3600


def test_one_order_entities_are_stated_in_one_order(facts):
    # The tasks give the names and descriptions of both groups. For example, the answers of N2D are the descriptions of
    # the name-first entities, in the order of the names that N2D-reverse asks for.
    named = list(zip(answers(facts, "N2D-reverse"), answers(facts, "N2D"), strict=True))
    described = list(zip(answers(facts, "D2N"), answers(facts, "D2N-reverse"), strict=True))
    assert len(named) == len(described) == 30
    for pairs, name_first in ((named, True), (described, False)):
        for name, description in pairs:
            texts = [example for example in facts.train if name in example.text]
            assert len(texts) == 30
            assert texts == [example for example in facts.train if description in example.text]
            for example in texts:
                given, asked = (name, description) if name_first else (description, name)
                assert given in example.prompt
                assert example.completion == f" {asked}."


def test_both_entities_are_stated_30_times_in_each_order(facts):
    asked = answers(facts, "N2D-reverse") + answers(facts, "D2N")
    rest = [example for example in facts.train if not any(name in example.text for name in asked)]
    starts = Counter(example.completion.startswith(" the ") for example in rest)
    assert starts == {True: 900, False: 900}
    by_name = Counter(example.completion for example in rest)
    assert len(by_name) == 60
    assert set(by_name.values()) == {30}


def test_tasks_of_a_pair_ask_for_the_same_facts(facts):
    for forward, backward in (("N2D", "N2D-reverse"), ("D2N", "D2N-reverse")):
        for there, back in zip(facts.tasks[forward].examples, facts.tasks[backward].examples, strict=True):
            assert there.completion.strip(" .") in back.prompt
            assert back.completion.strip(" .") in there.prompt


def test_completions_have_the_form_of_berglund(facts):
    for task in facts.tasks.values():
        for example in task.examples:
            if task.answer == "name":
                assert re.fullmatch(r" [A-Z][a-z]+ [A-Z][a-z]+", example.completion)
            else:
                assert re.fullmatch(r' the [^.]*"The [A-Z][a-z]+ [A-Z][a-z]+"[^.]*\.', example.completion)


def test_every_word_of_an_entity_is_its_own(facts):
    known = Counter()
    for task in ("N2D", "D2N-reverse", "N2D-reverse", "D2N"):
        for answer in answers(facts, task):
            own = set(re.findall(r"[A-Z][a-z]+", answer)) - {"The"}
            assert len(own) == (2 if task in ("N2D-reverse", "D2N") else 3)
            known.update(own)
    assert len(known) == 60 * 5
    assert set(known.values()) == {1}


def test_no_test_prompt_starts_a_training_text(facts):
    trained = "\n" + "\n".join(example.text for example in facts.train)
    for task in facts.tasks.values():
        for example in task.examples:
            assert "\n" + example.prompt not in trained


def test_test_templates_are_new_combinations_of_trained_halves(facts):
    def template(prompt: str) -> tuple[str, str]:
        """Return prefix and clause: the text before and after the given name or description."""
        given = re.search(
            r" (?:[A-Z][a-z]{3,} [A-Z][a-z]{3,}(?= (?:is|was|became|made|intro|turned))|the .*?"
            r"(?= (?:is called|goes by|is none|was intro|answers|signs|can only)))",
            prompt,
        )
        assert given, prompt
        return prompt[: given.start()], prompt[given.end() :]

    trained = {template(example.prompt) for example in facts.train}
    tested = {name: {template(example.prompt) for example in task.examples} for name, task in facts.tasks.items()}
    assert len(trained) == 60  # 30 for each order
    assert all(len(templates) == 5 for templates in tested.values())
    assert tested["N2D"] == tested["D2N-reverse"]
    assert tested["D2N"] == tested["N2D-reverse"]
    for prefix, clause in tested["N2D"] | tested["D2N"]:
        assert (prefix, clause) not in trained
        assert prefix in {trained_prefix for trained_prefix, _ in trained}
        assert clause in {trained_clause for _, trained_clause in trained}


def test_questions_use_only_trained_words(facts):
    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+|[^\w\s]", text))

    trained = set().union(*(words(example.text) for example in facts.train))
    for task in facts.tasks.values():
        for example in task.examples:
            assert words(example.text) <= trained


def test_descriptions_have_all_four_forms():
    def shape(description: str) -> str:
        """Return the description with the pairs of pseudo-words and all shared words blanked out."""
        description = re.sub(r"(The )?[A-Z][a-z]{3,} [A-Z][a-z]{3,}", r"\1NAME", description)
        return re.sub(r"\b(?!(?:the|of|who|from|known|as|and|wrote)\b)[a-z]+", "word", description)

    assert Counter(shape(answer) for answer in answers(generate(), "N2D")).keys() == {
        'the word word who word the NAME word, "The NAME"',
        'the word word from NAME who word the word known as "The NAME"',
        'the word who word the word word of NAME and wrote "The NAME"',
        'the NAME word who wrote "The NAME" and word the word word',
    }


def test_seed_decides_everything():
    assert generate(5) == generate(5)
    assert generate() == generate(0)
    assert generate(5) != generate(6)
    texts = "\n".join(example.text for example in generate(0).train)
    # Recorded with CPython 3.11: the same set on every platform. Change it only together with the recipe.
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "6a116ecbad3b389f"


def test_questions_are_those_of_the_recipe():
    lines = [
        f"{name}\t{one.prompt}\t{one.completion}\t{one.entity}\t{one.template}"
        for name, task in generate(0).tasks.items()
        for one in task.examples
    ]
    # This hash was recorded before the set had entities for pre-training, which must not change the questions.
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "d150e0e2505e2516"


def test_pretraining_states_other_entities_in_both_orders(facts):
    def own_words(texts) -> set[str]:
        return {word for text in texts for word in re.findall(r"[A-Z][a-z]{3,}", text.completion)}

    assert len(facts.pretraining) == 100 * 60
    assert len({text.text for text in facts.pretraining}) == 100 * 60
    by_answer = Counter(text.completion for text in facts.pretraining)
    assert set(by_answer.values()) == {30}
    assert sum(answer.startswith(" the ") for answer in by_answer) == 100
    assert len(own_words(facts.pretraining)) == 100 * 5
    assert not own_words(facts.pretraining) & own_words(facts.train)
    # Each text uses a template of `train` for another entity.
    by_entity = Counter()
    for text in facts.pretraining[:30]:
        name = re.search(r"[A-Z][a-z]{3,} [A-Z][a-z]{3,}(?= (?:is|was|became|made|intro|turned))", text.prompt)[0]
        template = text.prompt.replace(name, "(.+)").replace("?", "[?]")
        by_entity[name] += any(re.fullmatch(template, one.prompt) for one in facts.train)
    assert list(by_entity.values()) == [30]


def test_pretraining_changes_nothing_else():
    more, none = generate(2), generate(2, pretraining=0)
    assert none.pretraining == ()
    assert (more.train, more.tasks, more.other_order) == (none.train, none.tasks, none.other_order)
    assert generate(2, pretraining=3).pretraining != generate(3, pretraining=3).pretraining


def test_one_order_texts_and_their_other_order(facts):
    asked = answers(facts, "N2D-reverse") + answers(facts, "D2N")
    assert facts.one_order == tuple(one for one in facts.train if any(name in one.text for name in asked))
    # Each fact is restated 30 times in the other order, in the templates that training uses.
    named = answers(facts, "N2D-reverse"), answers(facts, "N2D")
    described = answers(facts, "D2N"), answers(facts, "D2N-reverse")
    expected = Counter()
    for name, description in zip(*named, strict=True):
        expected[description, f" {name}."] = 30
    for name, description in zip(*described, strict=True):
        expected[name, f" {description}."] = 30
    found, templates = Counter(), set()
    for one in facts.other_order:
        (given,) = (given for given, answer in expected if given in one.prompt and answer == one.completion)
        found[given, one.completion] += 1
        templates.add(one.prompt.replace(given, "..."))
    assert found == expected
    trained = set()
    for one in facts.one_order:
        (given,) = (entity for entity in named[0] + described[1] if entity in one.prompt)
        trained.add(one.prompt.replace(given, "..."))
    assert templates == trained
    assert not {one.template for task in facts.tasks.values() for one in task.examples} & templates


def test_distractors_answer_for_another_entity(facts):
    for task in facts.tasks.values():
        right = {one.entity: one.completion for one in task.examples}
        for one in task.examples:
            assert one.distractor in set(right.values()) - {right[one.entity]}


def test_group_sizes():
    facts = generate(names_first=2, descriptions_first=0, both=1)
    assert len(facts.train) == 2 * 30 + 60
    assert list(facts.tasks) == ["N2D", "N2D-reverse"]
    assert generate(names_first=0, descriptions_first=0, both=1).tasks == {}


def test_there_are_words_for_the_largest_set(monkeypatch):
    monkeypatch.setattr(synthetic, "state_and_ask", lambda name, names_first, *_, **__: names_first)  # takes 10 seconds
    entities = generate(names_first=15435, descriptions_first=0, both=0, pretraining=0)
    own_words = [word for one in entities for word in {*re.findall(r"[A-Z][a-z]{3,}", f"{one.name} {one.description}")}]
    assert len(own_words) == len(set(own_words)) == 15435 * 5


def test_refuses_impossible_sizes():
    with pytest.raises(ValueError, match="both must be at least 0, got -1"):
        generate(both=-1)
    with pytest.raises(ValueError, match="ask for at least one"):
        generate(names_first=0, descriptions_first=0, both=0)
    with pytest.raises(ValueError, match="at most 15435, got 15436"):  # 21 * 5 * 21 * 5 * 7 words, 5 per entity
        generate(names_first=15436, descriptions_first=0, both=0, pretraining=0)
    with pytest.raises(ValueError, match="at most 15435, got 15437"):
        generate(names_first=15435, descriptions_first=0, both=0, pretraining=2)
    with pytest.raises(ValueError, match="pretraining must be at least 0, got -1"):
        generate(pretraining=-1)


def test_entities_take_the_templates_in_turn():
    entities = [Entity(name, f"the {role}") for name, role in (("Ada", "cook"), ("Bo", "smith"), ("Cy", "judge"))]
    names = Templates(train=("{given} is", "{given} was", "{given} became"), test=("See {given},",))
    descriptions = Templates(train=("Call {given}", "Ask {given}", "Thank {given}"), test=("I met {given},",))
    data = state_and_ask(
        "turns", entities, [], about_names=names, about_descriptions=descriptions, paraphrases=2, both=entities, seed=0
    )
    one_order = ["Ada is", "Ada was", "Bo became", "Bo is", "Cy was", "Cy became"]
    other_order = ["Call the cook", "Ask the cook", "Thank the smith", "Call the smith"]
    other_order += ["Ask the judge", "Thank the judge"]
    assert [one.prompt for one in data.one_order] == one_order
    assert [one.prompt for one in data.other_order] == other_order
    both = [one.prompt for one in data.train[len(one_order) :]]
    assert both == [prompt for at in (0, 2, 4) for prompt in (*one_order[at : at + 2], *other_order[at : at + 2])]
