"""Relations between two entities, from a CSV file: who is X's mother, and who is Y's child?

The file has the header `subject,relation,object` and one line per fact: "Mary,mother,Tom" states that Mary is the
mother of Tom. The four tasks of `bico_ext.facts.pairs` are named after what they ask for. `to-subject` gives the object
("Tom's mother is"), and `to-object` gives the subject ("Mary's child is"). `to-subject-reverse` asks for the objects of
facts that training states object first, and `to-object-reverse` for the subjects of facts stated subject first.

Each relation needs templates: built-in ones (see `KNOWN`), or those of a file `<file>.yaml` beside the data:

    mother:
      forward: ["{object}'s mother is", "The mother of {object} is"]
      reverse: ["{subject}'s child is", "The child of {subject} is"]

Each question must have exactly one right answer. So an entity may be the subject of a relation only once, and the
object only once. Relations that share templates count as one here: the children of a mother and of a parent are asked
for in the same words.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bico_ext.facts.jsonl import refuse_empty
from bico_ext.facts.pairs import GIVEN, Pairs, build, check_new, check_templates, read_templates
from bico_ext.facts.types import FactData

_HEADER = ["subject", "relation", "object"]
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
        ValueError: the header or the number of fields is wrong, a field is blank, a relation has no templates, a
            relation links an entity twice, or it has fewer than three facts (the message gives file and line number);
            or the templates are broken.

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


def _own_templates(found: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(found, Mapping) or set(found) != set(_GAPS):
        raise ValueError(f"{where}: expected the keys forward and reverse, each a list of prompts, got {found!r:.80}")
    return {key: check_templates(found[key], gap, f"{where}, {key}") for key, gap in _GAPS.items()}


def _read(path: Path, templates: Mapping[str, Mapping[str, tuple[str, ...]]]) -> dict[str, list[tuple[str, str]]]:
    """Return the facts by relation, each as (object, subject)."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    known = sorted(templates)
    seen: dict[tuple[str, ...], int] = {}
    last_line: dict[str, int] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        try:
            header = next(reader, [])
            if [field.strip() for field in header] != _HEADER:
                raise ValueError(
                    f"{path}, line 1: expected the header {','.join(_HEADER)}, got {','.join(header)!r:.60}"
                )
            for fields in reader:
                if not any(field.strip() for field in fields):
                    continue
                where = f"{path}, line {reader.line_num}"
                subject, relation, object_ = _check_fields(fields, known, where)
                for role, entity, direction in (("subject", subject, "reverse"), ("object", object_, "forward")):
                    what = f"{entity!r} is the {role} of {relation!r}, or of a relation with the same templates,"
                    check_new(seen, (*templates[relation][direction], entity), reader.line_num, where, what)
                pairs.setdefault(relation, []).append((object_, subject))
                last_line[relation] = reader.line_num
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: expected CSV in UTF-8, got {error}") from error
    if not pairs:
        refuse_empty(path, "train")
    for relation, facts in pairs.items():
        if len(facts) < 3:  # stated object first, stated subject first, stated in both orders
            raise ValueError(
                f"{path}, line {last_line[relation]}: relation {relation!r} needs at least 3 facts, got {len(facts)}"
            )
    return pairs


def _check_fields(fields: list[str], known: list[str], where: str) -> list[str]:
    stripped = [field.strip() for field in fields]
    if len(stripped) != len(_HEADER) or not all(stripped):
        raise ValueError(f"{where}: expected {','.join(_HEADER)}, none of them blank, got {','.join(fields)!r:.80}")
    relation = stripped[1]
    if relation not in known:
        raise ValueError(
            f"{where}: relation {relation!r} has no templates; relations with templates are {', '.join(known)}; add "
            "others in a .yaml file beside the data"
        )
    return stripped
