"""Relations between two entities, from a CSV file: who is X's mother, and who is Y's child?

`load` reads it. `load_husbands` reads another kind of file, couples from a TSV file that are stated in one template.

The CSV file has the header `subject,relation,object` and one line per fact: "Mary,mother,Tom" states that Mary is the
mother of Tom. The four tasks of `bico_ext.facts.pairs` are named after what they ask for. `to-subject` gives the object
("Tom's mother is"), and `to-object` gives the subject ("Mary's child is"). `to-subject-reverse` asks for the objects of
facts that training states object first, and `to-object-reverse` for the subjects of facts stated subject first.

Each relation needs templates: built-in ones (see `KNOWN`), or those of a file `<file>.yaml` beside the data:

    mother:
      forward: ["{object}'s mother is", "The mother of {object} is"]
      reverse: ["{subject}'s child is", "The child of {subject} is"]

An entity may occur in several facts. A question accepts all answers that the file gives to it: all children of Mary,
whether the file calls her their mother or their parent, because both relations ask for children in the same words.
Facts that share a question are stated in the same order (`bico_ext.facts.pairs`).

The header may also be that of the parents and children of celebrities by Berglund et al.,
`child,parent,parent_type,child_prediction,can_reverse`. There `parent_type` is "mother" or "father", or
"ParentType.MOTHER" or "ParentType.FATHER" as in older versions of their file. The last two columns are ignored.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bico_ext.facts.distractors import draw_distractors
from bico_ext.facts.jsonl import MAKE_JSONL, refuse_empty
from bico_ext.facts.pairs import GIVEN, Pairs, build, check_templates, read_templates
from bico_ext.facts.types import Example, FactData, Question, Task
from bico_ext.files import read_lines, read_text

_HEADER = ["subject", "relation", "object"]
_PARENTS_HEADER = ["child", "parent", "parent_type", "child_prediction", "can_reverse"]
_PARENT_TYPES = {"ParentType.MOTHER": "mother", "ParentType.FATHER": "father"}
_GAPS = {"forward": "{object}", "reverse": "{subject}"}
_SHAPES = (
    f"{GIVEN}'s {{asked}} is",
    f"The {{asked}} of {GIVEN} is",
    f"Everyone knows {GIVEN}, whose {{asked}} is",
    f"Who is the {{asked}} of {GIVEN}? It is",
    f"As the {{asked}} of {GIVEN}, the records name",
    f"Ask about the {{asked}} of {GIVEN}, and you will hear of",
    f"{GIVEN} has one {{asked}}, namely",
    f"If you look for {GIVEN}'s {{asked}}, you will find",
)


def _templates(asked_forward: str, asked_reverse: str) -> dict[str, tuple[str, ...]]:
    asked_by = {"forward": asked_forward, "reverse": asked_reverse}
    return {key: tuple(shape.replace("{asked}", asked) for shape in _SHAPES) for key, asked in asked_by.items()}


# The relations with built-in templates.
KNOWN = {
    "mother": _templates("mother", "child"),
    "father": _templates("father", "child"),
    "parent": _templates("parent", "child"),
    "capital": _templates("capital", "country"),
}


def load(path: Path) -> FactData:
    """Load a file of relations; see the module.

    Raises:
        ValueError: the header or the number of fields is wrong, a field is blank, a relation has no templates, or it
            has fewer than three facts (the message gives file and line number); the templates are broken; or the facts
            cannot be split, as in `bico_ext.facts.pairs.build`.

    Example:
        >>> load(Path("pairs.csv")).tasks["to-subject"].examples[0].prompt  # doctest: +SKIP
        "Tom's mother is"
    """
    templates = dict(KNOWN)
    for relation, found in read_templates(path).items():
        templates[relation] = _own_templates(found, f"{path.with_suffix('.yaml')}, {relation}")
    pairs = _read(path, templates)
    kinds = [
        Pairs(tuple(facts), templates[relation]["forward"], templates[relation]["reverse"])
        for relation, facts in pairs.items()
    ]
    return build(path.name, kinds, forward="to-subject", backward="to-object")


def load_husbands(path: Path) -> FactData:
    """Load couples: one per line, the wife and the husband separated by a tab.

    This is the setting of the identity bridge (arXiv 2602.02470) without its additional sentences. Training states each
    couple once, in one template that never says "wife", so the inverse relation must be known from pre-training. The
    task `husband` asks in the words of training. `husband-reverse` gives the husband.

    Returns:
        The set, in which `one_order` is `train`. The entity of both questions about a couple is the wife.

    Raises:
        ValueError: a line is not two names, a wife or a husband occurs twice (the message gives file and line number),
            the file is not UTF-8, or it has no couples.

    Example:
        >>> data = load_husbands(Path("pairs.tsv"))  # doctest: +SKIP
        >>> data.train[0].text, data.tasks["husband-reverse"].examples[0].text  # doctest: +SKIP
        ('The husband of Catherine is? Emiliano.', 'The wife of Emiliano is? Catherine')
    """
    couples = _read_couples(path)
    train = tuple(Example(f"The husband of {wife} is?", f" {husband}.") for wife, husband in couples)
    husbands = [
        Question(f"The husband of {wife} is?", f" {husband}", wife, "The husband of ... is?")
        for wife, husband in couples
    ]
    wives = [
        Question(f"The wife of {husband} is?", f" {wife}", wife, "The wife of ... is?") for wife, husband in couples
    ]
    tasks = {
        "husband": Task("husband", "name", draw_distractors(husbands)),
        "husband-reverse": Task("husband-reverse", "name", draw_distractors(wives), "husband"),
    }
    return FactData(path.name, train, tasks, one_order=train)


def _read_couples(path: Path) -> list[tuple[str, str]]:
    """Return the wife and the husband of each line; blank lines are skipped."""
    couples: list[tuple[str, str]] = []
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        names = [name.strip() for name in line.split("\t")]
        if {"prompt", "completion"} <= set(names):
            raise ValueError(f"{where}: a .tsv file holds a wife and a husband on each line; {MAKE_JSONL}")
        if len(names) != 2 or not all(names):
            raise ValueError(f"{where}: expected a wife and a husband, separated by a tab, got {line!r:.80}")
        for role, name in zip(("wife", "husband"), names, strict=True):
            if seen.setdefault((role, name), number) != number:
                raise ValueError(
                    f"{where}: {name!r} is a {role} in line {seen[role, name]}, too, so a question about it would have "
                    "two right answers; keep one of the two lines"
                )
        couples.append((names[0], names[1]))
    if not couples:
        refuse_empty(path, "train")
    return couples


def _own_templates(found: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(found, Mapping) or set(found) != set(_GAPS):
        raise ValueError(f"{where}: expected the keys forward and reverse, each a list of prompts, got {found!r:.80}")
    return {key: check_templates(found[key], gap, f"{where}, {key}") for key, gap in _GAPS.items()}


def _read(path: Path, templates: Mapping[str, Mapping[str, tuple[str, ...]]]) -> dict[str, list[tuple[str, str]]]:
    """Return the facts by relation, each as (object, subject)."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    known = sorted(templates)
    last_line: dict[str, int] = {}
    with io.StringIO(read_text(path), newline="") as file:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        try:
            header = [field.strip() for field in next(reader, [])]
            if header not in (_HEADER, _PARENTS_HEADER):
                raise ValueError(
                    f"{path}, line 1: expected the header {','.join(_HEADER)} or {','.join(_PARENTS_HEADER)}, got "
                    f"{','.join(header)!r:.60}" + (f"; {MAKE_JSONL}" if "prompt" in header else "")
                )
            for fields in reader:
                if not any(field.strip() for field in fields):
                    continue
                where = f"{path}, line {reader.line_num}"
                subject, relation, object_ = _check_fields(fields, header, known, where)
                pairs.setdefault(relation, []).append((object_, subject))
                last_line[relation] = reader.line_num
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: expected CSV, got {error}") from error
    if not pairs:
        refuse_empty(path, "train")
    for relation, facts in pairs.items():
        if len(set(facts)) < 3:  # stated object first, stated subject first, stated in both orders
            raise ValueError(
                f"{path}, line {last_line[relation]}: relation {relation!r} needs at least 3 facts, got "
                f"{len(set(facts))}"
            )
    return pairs


def _check_fields(fields: list[str], header: list[str], known: list[str], where: str) -> tuple[str, str, str]:
    """Return the subject, the relation and the object of a line."""
    stripped = [field.strip() for field in fields]
    if len(stripped) != len(header) or not all(stripped[:3]):
        raise ValueError(
            f"{where}: expected {','.join(header)}, none of the first three blank, got {','.join(fields)!r:.80}"
        )
    subject, relation, object_ = stripped[:3]
    if header == _PARENTS_HEADER:
        object_, subject, relation = stripped[:3]
        relation = _PARENT_TYPES.get(relation, relation)
    if relation not in known:
        raise ValueError(
            f"{where}: relation {relation!r} has no templates; relations with templates are {', '.join(known)}; add "
            "others in a .yaml file beside the data"
        )
    return subject, relation, object_
