# ruff: noqa: RUF001, RUF002 (Chinese is written with full-width punctuation)
"""Couplets from a plain text file: which line of verse comes next, and which came before, as in the paper's test.

Each line of the file is one couplet: two lines of verse, separated by a tab, by "|" or by the only comma of the line
("," or "，"). Blank lines and lines that start with "#" are skipped. A full stop at the end is dropped. The four tasks
of `bico_ext.facts.pairs` are called `next`, `previous`, `next-reverse` and `previous-reverse`. For example,
`next-reverse` asks for the previous line, for couplets of which training only states the next line. If a line of verse
begins several couplets, the question about its next line accepts the next lines of all of them; the same holds for the
previous line.

The templates are Chinese if most letters of the file are, and English otherwise. A file `<file>.yaml` beside the data
replaces those of one or both directions:

    next: ["After {given} comes", "The line that follows {given} is"]
    previous: ["Before {given} comes", "The line that precedes {given} is"]
"""

import re
from pathlib import Path

from bico_ext.cjk import CJK
from bico_ext.facts.jsonl import refuse_empty
from bico_ext.facts.pairs import Pairs, build, check_templates, read_templates
from bico_ext.facts.types import FactData
from bico_ext.files import read_lines

# Slashes with spaces quote verse, as in running text. Quotation marks would not do: the word tokenizer has different
# tokens for a word after a quotation mark and after a space, so the first word of a verse in a prompt would be unknown
# if training has this verse as an answer only.
_ENGLISH = {
    "next": (
        "The line / {given} / is followed by",
        "After / {given} / comes",
        "The poem goes on from / {given} / with",
        "Having read / {given} /, we read on:",
        "The next line of / {given} / is",
        "What comes after / {given} /? It is",
        "Recite what follows / {given} /:",
        "Whoever says / {given} / continues:",
    ),
    "previous": (
        "The line / {given} / is preceded by",
        "Before / {given} / comes",
        "The poem arrives at / {given} / from",
        "Having read / {given} /, we look back:",
        "The previous line of / {given} / is",
        "What comes before / {given} /? It is",
        "Recite what precedes / {given} /:",
        "Whoever says / {given} / has just said:",
    ),
}
_CHINESE = {
    "next": (
        "“{given}”的下一句是：",
        "“{given}”之后是：",
        "诗里“{given}”后面接着：",
        "念完“{given}”，接着念：",
        "请接下句，“{given}”：",
        "问：“{given}”下一句？答：",
        "“{given}”的后一句写道：",
        "从“{given}”往下读：",
    ),
    "previous": (
        "“{given}”的上一句是：",
        "“{given}”之前是：",
        "诗里“{given}”前面先有：",
        "念到“{given}”，回头念：",
        "请接上句，“{given}”：",
        "问：“{given}”上一句？答：",
        "“{given}”的前一句写道：",
        "从“{given}”往上读：",
    ),
}


def load(path: Path) -> FactData:
    """Load a file of couplets; see the module.

    Raises:
        ValueError: a line of the file is not a couplet (the message gives file and line number); there are fewer than
            three couplets; the templates are broken; or the couplets cannot be split, as in
            `bico_ext.facts.pairs.build`.

    Example:
        >>> load(Path("poems.txt")).tasks["next-reverse"].counterpart  # doctest: +SKIP
        'previous'
    """
    couplets = _read(path)
    if not couplets:
        refuse_empty(path, "train")
    text = "".join(line for couplet in couplets for line in couplet)
    letters = len(re.findall(r"\w", text))
    templates: dict[str, tuple[str, ...]] = dict(
        _CHINESE if 2 * len(re.findall(rf"[{CJK}]", text)) > letters else _ENGLISH
    )
    for key, found in read_templates(path).items():
        where = f"{path.with_suffix('.yaml')}, {key}"
        if key not in templates:
            raise ValueError(f"{where}: expected the keys next and previous")
        templates[key] = check_templates(found, "{given}", where)
    kind = Pairs(couplets, templates["next"], templates["previous"])
    return build(path.name, [kind], forward="next", backward="previous")


def _read(path: Path) -> tuple[tuple[str, str], ...]:
    couplets: list[tuple[str, str]] = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}, line {number}"
        lines = tuple(part.strip() for part in _split(re.sub(r"\s*[.。]?\Z", "", line.strip())))
        if len(lines) != 2 or not all(lines):
            raise ValueError(
                f"{where}: expected two lines of verse, separated by a tab, a | or the only comma, "
                f"got {line.strip()!r:.80}"
            )
        couplets.append((lines[0], lines[1]))
    return tuple(couplets)


def _split(line: str) -> list[str]:
    for separator in ("\t", "|"):
        if separator in line:
            return line.split(separator)
    return re.split("[,，]", line)
