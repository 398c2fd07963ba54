"""Relations from a CSV file (who is X's mother, and who is Y's child) and couples from a TSV file."""

import pytest

from bico_ext.evaluation.leakage import leakage
from bico_ext.facts.loader import load_facts

CSV = """subject,relation,object
Mary,mother,Tom
Ann, mother, Bo
"Eve, of Rib",mother,Abel

Paris,capital,France
Rome,capital,Italy
Bern,capital,Switzerland
"""


def write(tmp_path, text: str):
    path = tmp_path / "facts.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", [CSV, CSV.replace("\n", "\r\n"), "\ufeff" + CSV])
def test_both_questions_of_each_relation(text, tmp_path):
    facts = load_facts(write(tmp_path, text))
    assert {name: [one.text for one in task.examples] for name, task in facts.tasks.items()} == {
        "to-subject": ["Tom's mother is Mary", "France's capital is Paris"],
        "to-object": ["Ann's child is Bo", "Rome's country is Italy"],
        "to-subject-reverse": ["Mary's child is Tom", "Paris's country is France"],
        "to-object-reverse": ["Bo's mother is Ann", "Italy's capital is Rome"],
    }
    assert [task.counterpart for task in facts.tasks.values()] == [None, None, "to-object", "to-subject"]
    trained = [one.text for one in facts.train]
    assert "The mother of Tom is Mary" in trained
    assert "The child of Ann is Bo" in trained
    assert not any("Tom" in text and "child" in text for text in trained)
    assert {"Abel's mother is Eve, of Rib", "Eve, of Rib's child is Abel"} <= set(trained)


@pytest.mark.parametrize(
    ("relation", "asked"),
    [("mother", ("mother", "child")), ("father", ("father", "child")), ("parent", ("parent", "child"))],
)
def test_built_in_relations(relation, asked, tmp_path):
    lines = [f"s{number},{relation},o{number}" for number in range(3)]
    facts = load_facts(write(tmp_path, "\n".join(["subject,relation,object", *lines])))
    assert facts.tasks["to-subject"].examples[0].text == f"o0's {asked[0]} is s0"
    assert facts.tasks["to-object"].examples[0].text == f"s1's {asked[1]} is o1"


def test_own_templates_beside_the_file(tmp_path):
    path = write(tmp_path, "subject,relation,object\na,boss,b\nc,boss,d\ne,boss,f\n")
    (tmp_path / "facts.yaml").write_text(
        "boss:\n  forward: ['{object} obeys', '{object} follows']\n  reverse: ['{subject} rules', '{subject} leads']\n"
    )
    facts = load_facts(path)
    assert [one.text for one in facts.one_order] == ["b follows a", "c leads d"]
    assert facts.tasks["to-subject-reverse"].examples[0].text == "a rules b"


def test_unknown_relation_is_named_with_the_known_ones(tmp_path):
    path = write(tmp_path, CSV + "Bob,uncle,Jo\n")
    with pytest.raises(
        ValueError,
        match=r"facts.csv, line 9: relation 'uncle' has no templates; .* are capital, father, mother, parent; add",
    ):
        load_facts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Zed,mother", "expected subject,relation,object, none of the first three blank, got 'Zed,mother'"),
        ("Zed,mother,Yo,why", "expected subject,relation,object"),
        ("Zed,mother, ", "expected subject,relation,object, none of the first three blank"),
        ('"Zed,mother,Yo', "expected CSV, got"),
    ],
)
def test_broken_line_is_named(line, message, tmp_path):
    with pytest.raises(ValueError, match=rf"facts.csv, line 9: .*{message}"):
        load_facts(write(tmp_path, CSV + line + "\n"))


FAMILIES = """subject,relation,object
Mary,mother,Tom
Mary,mother,Ann
Peter,father,Tom
Eve,mother,Abel
Adam,father,Cy
Mary,mother,Tom
Ida,mother,Bo
Mary,father,Zoe
Paul,father,Ed
"""


def test_an_entity_may_occur_in_several_facts(tmp_path):
    """Mary is the mother of two and, by an error, the father of a third: her children are one question."""
    facts = load_facts(write(tmp_path, FAMILIES))
    assert {name: [(one.prompt, one.accepted) for one in task.examples] for name, task in facts.tasks.items()} == {
        "to-subject": [
            ("Tom's mother is", (" Mary",)),
            ("Ann's mother is", (" Mary",)),
            ("Zoe's father is", (" Mary",)),
            ("The father of Ed is", (" Paul",)),
        ],
        "to-object": [("Eve's child is", (" Abel",)), ("Peter's child is", (" Tom",))],
        "to-subject-reverse": [("Mary's child is", (" Tom", " Ann", " Zoe")), ("The child of Paul is", (" Ed",))],
        "to-object-reverse": [("Abel's mother is", (" Eve",)), ("Tom's father is", (" Peter",))],
    }
    assert leakage(facts) == []
    trained = [one.text for one in facts.train]
    assert len(trained) == len(set(trained)) == 6 * 7 + 2 * 2 * 8
    assert not any("Mary" in text and "child" in text for text in trained)


def test_facts_without_repeated_entities_are_what_they_were(tmp_path):
    """The digest was computed before an entity could occur in several facts."""
    relations = ("mother", "capital", "father", "mother")
    lines = [f"s{number},{relations[number % 4]},o{number}" for number in range(40)]
    assert load_facts(write(tmp_path, "\n".join(["subject,relation,object", *lines]))).digest() == "103bf365fcaba13d"


# The header, and both ways to write the types, of the parents of celebrities by Berglund et al.; the names are made up.
PARENTS = """child,parent,parent_type,child_prediction,can_reverse
Tom Ash,Mary Ash,mother,,False
Tom Ash,"Paul Ash, Sr.",father,Tom Ash,True
Ann Oak,Mary Ash,mother,,False
Bo Elm,Ida Elm,mother,Bo Elm,True
Cy Fir,Joe Fir,father,,False
Di Yew,Eve Yew,mother,,False
Ed Bay,Max Bay,father,,False
"""


@pytest.mark.parametrize(
    "text", [PARENTS, PARENTS.replace("mother", "ParentType.MOTHER").replace("father", "ParentType.FATHER")]
)
def test_parents_of_celebrities(text, tmp_path):
    facts = load_facts(write(tmp_path, text))
    same = """subject,relation,object
        Mary Ash,mother,Tom Ash
        "Paul Ash, Sr.",father,Tom Ash
        Mary Ash,mother,Ann Oak
        Ida Elm,mother,Bo Elm
        Joe Fir,father,Cy Fir
        Eve Yew,mother,Di Yew
        Max Bay,father,Ed Bay
    """
    assert facts == load_facts(write(tmp_path, same))
    assert facts.tasks["to-subject-reverse"].examples[0].accepted == (" Tom Ash", " Ann Oak")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Al Ivy,Bea Ivy,aunt,,False", "relation 'aunt' has no templates"),
        ("Al Ivy,Bea Ivy,mother", "expected child,parent,parent_type,child_prediction,can_reverse, none of the first"),
        ("Al Ivy,,mother,,False", "none of the first three blank, got 'Al Ivy,,mother,,False'"),
    ],
)
def test_broken_line_of_parents_is_named(line, message, tmp_path):
    with pytest.raises(ValueError, match=f"facts.csv, line 9: .*{message}"):
        load_facts(write(tmp_path, PARENTS + line + "\n"))


def test_an_entity_may_stand_in_other_relations(tmp_path):
    facts = load_facts(write(tmp_path, CSV + "Mary,capital,Tom\nTom,capital,Yo\nYo,capital,Mary\n"))
    assert len(facts.tasks["to-subject"].examples) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "line 1: expected the header subject,relation,object or "
            "child,parent,parent_type,child_prediction,can_reverse, got ''",
        ),
        ("a,b,c\n", "line 1: expected the header subject,relation,object or .*, got 'a,b,c'"),
        ("subject,relation,object\n", "train holds no examples"),
        (
            "subject,relation,object\na,mother,b\nc,mother,d\n",
            "line 3: relation 'mother' needs at least 3 facts, got 2",
        ),
        (
            "subject,relation,object\na,mother,b\nc,mother,d\na,mother,b\n",
            "line 4: relation 'mother' needs at least 3 facts, got 2",
        ),
        (
            "subject,relation,object\na,mother,b\na,mother,c\na,mother,d\n",
            "pairs that are connected by common texts .* got 1 such groups in the kind of 'b' and 'a'; add",
        ),
    ],
)
def test_broken_file(text, message, tmp_path):
    with pytest.raises(ValueError, match=rf"facts.csv.*{message}"):
        load_facts(write(tmp_path, text))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("boss: [a]", "facts.yaml, boss: expected the keys forward and reverse"),
        ("boss: {forward: ['{object} a', '{object} b']}", "facts.yaml, boss: expected the keys forward and reverse"),
        (
            "boss: {forward: ['{object} a', '{object} b'], reverse: ['{subject} a', '{subject} b'], other: []}",
            "facts.yaml, boss: expected the keys forward and reverse",
        ),
        (
            "boss: {forward: ['{object} a', '{object} b'], reverse: ['{object} a', '{subject} b']}",
            r"facts.yaml, boss, reverse: expected templates with \{subject\} once in each, .* got '\{object\} a'",
        ),
        (
            "boss: {forward: ['{object} a', '{object} of {subject}'], reverse: ['{subject} a', '{subject} b']}",
            r"facts.yaml, boss, forward: .* and no other gap, got '\{object\} of \{subject\}'",
        ),
    ],
)
def test_broken_templates(yaml, message, tmp_path):
    path = write(tmp_path, CSV)
    (tmp_path / "facts.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=message):
        load_facts(path)


def test_short_names_within_other_words_are_no_leak(tmp_path):
    lines = "Mary,mother,Tom\nAnn,mother,Bo\nIda,mother,Yo\n"  # "about" holds Bo
    assert leakage(load_facts(write(tmp_path, f"subject,relation,object\n{lines}"))) == []


def test_couples_are_stated_once_and_asked_both_ways(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("\ufeffAda\tBo\r\n\n Cy Ann \tDan\n", encoding="utf-8")
    facts = load_facts(path)
    assert facts.name == "pairs.tsv"
    assert [one.text for one in facts.train] == ["The husband of Ada is? Bo.", "The husband of Cy Ann is? Dan."]
    assert facts.one_order == facts.train
    husband, wife = facts.tasks["husband"], facts.tasks["husband-reverse"]
    assert [one.text for one in husband.examples] == ["The husband of Ada is? Bo", "The husband of Cy Ann is? Dan"]
    assert [one.text for one in wife.examples] == ["The wife of Bo is? Ada", "The wife of Dan is? Cy Ann"]
    assert [one.distractor for one in wife.examples] == [" Cy Ann", " Ada"]
    assert {(one.entity, task.answer) for task in (husband, wife) for one in task.examples} == {
        ("Ada", "name"),
        ("Cy Ann", "name"),
    }
    assert (husband.counterpart, wife.counterpart) == (None, "husband")
    assert leakage(facts) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b"Ada\tBo\nCy, Dan\n",
            "line 2: expected a wife and a husband, separated by a tab, got 'Cy, Dan'",
        ),
        (b"Ada\tBo\tCy\n", "line 1: expected a wife and a husband"),
        (b"Ada\t \n", "line 1: expected a wife and a husband"),
        (b"Ada\tBo\n\nCy\tBo\n", "line 3: 'Bo' is a husband in line 1, too, so a question about it would have two"),
        (b"Ada\tBo\nAda\tDan\n", "line 2: 'Ada' is a wife in line 1, too"),
        (b"Zo\xeb\tBo\n", "expected UTF-8"),
        (b"\n", "train holds no examples"),
    ],
)
def test_broken_couples_are_named(text, message, tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        load_facts(path)
