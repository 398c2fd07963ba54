"""Whom do the answers about couples name first? Prints a table for the answers that `bico compare` kept.

    python benchmarks/experiments/names_in_answers.py --data pairs.tsv --answers OUT/predictions.jsonl

It counts, over all seeds, the answers to "The wife of ... is?" by the first name in them that belongs to a couple.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from bico_ext.facts.loader import load_facts
from bico_ext.reports.tables import Table

KINDS = ("the right wife", "another wife", "the given husband", "another husband", "nobody")


def first_name(answer: str, people: Collection[str]) -> str | None:
    """Return the first word of an answer that is the name of one of the people."""
    return next((word for word in re.findall(r"\w+", answer) if word in people), None)


def kind_of_answer(prompt: str, completion: str, wives: Mapping[str, str], husbands: Collection[str]) -> str:
    """Return one of `KINDS`.

    Args:
        prompt: the question.
        completion: the answer.
        wives: the wife whom each question asks for.
        husbands: the husbands. A name that both a wife and a husband have counts as the wife's.
    """
    name = first_name(completion, {*wives.values(), *husbands})
    if name is None:
        return "nobody"
    if name in wives.values():
        return "the right wife" if name == wives[prompt] else "another wife"
    return "the given husband" if prompt == f"The wife of {name} is?" else "another husband"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the couples: a wife, a tab and her husband per line")
    parser.add_argument("--answers", type=Path, required=True, help="predictions.jsonl of bico compare")
    options = parser.parse_args(arguments)
    asked, told = (load_facts(options.data).tasks[task].examples for task in ("husband-reverse", "husband"))
    wives = {example.prompt: example.completion.strip() for example in asked}
    husbands = {example.completion.strip() for example in told}
    counts: dict[str, Counter[str]] = {}
    for answer in map(json.loads, options.answers.read_text(encoding="utf-8").splitlines()):
        if answer["task"] == "husband-reverse":
            kind = kind_of_answer(answer["prompt"], answer["completion"], wives, husbands)
            counts.setdefault(answer["system"], Counter())[kind] += 1
    body = [[system, *(str(count[kind]) for kind in KINDS)] for system, count in counts.items()]
    print(
        Table("husband-reverse, named first", ["system", *KINDS], body, "number of answers, over all seeds").markdown()
    )


if __name__ == "__main__":
    main()
