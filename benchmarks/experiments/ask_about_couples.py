"""Does a model know who is married to whom, and does it matter which relation is asked for? Prints a table.

    python benchmarks/experiments/ask_about_couples.py --model MODEL --data pairs.tsv

asks a model that was fine-tuned on the couples. With `--couples 4`, which also suits a model that was not, the texts of
the couple and of three others stand in front of the question, in random order. The others are the same for every
relation. An answer names the spouse if the first of the couples' names in it is the spouse's.
"""

import argparse
import random
from collections.abc import Sequence
from statistics import mean

from names_in_answers import first_name
from transformers import AutoModelForCausalLM, AutoTokenizer

from bico_ext import generate
from bico_ext.facts.loader import load_facts
from bico_ext.reports.tables import Table

RELATIONS = ("husband", "wife", "sister", "neighbour")
SEED = 0


def prompts(questions: Sequence[str], texts: Sequence[str], couples: int) -> list[str]:
    """Return each question behind the text of its couple, which has the same index, and of others.

    Args:
        questions: one per couple.
        texts: what training says of each couple.
        couples: the number of texts in front of a question; may be 0.
    """
    if couples == 0:
        return list(questions)
    draw = random.Random(SEED)
    told: list[str] = []
    for own, question in zip(texts, questions, strict=True):
        others = draw.sample([text for text in texts if text != own], couples - 1)
        told.append(" ".join([*draw.sample([own, *others], couples), question]))
    return told


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a hub name")
    parser.add_argument("--data", required=True, help="the couples: a wife, a tab and her husband per line")
    parser.add_argument("--couples", type=int, nargs="+", default=[0], help="couples in the prompt (default: 0)")
    options = parser.parse_args(arguments)
    data = load_facts(options.data)
    texts = [example.text for example in data.train]
    if wrong := [couples for couples in options.couples if not 0 <= couples <= len(texts)]:
        parser.error(f"argument --couples: must be from 0 to {len(texts)}, the couples of the data, got {wrong}")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    husbands, wives = (
        [question.completion.strip() for question in data.tasks[task].examples]
        for task in ("husband", "husband-reverse")
    )
    people = {*husbands, *wives}

    def share(questions: Sequence[str], spouses: Sequence[str], couples: int) -> float:
        """Return the share of the answers that name the spouse."""
        answers = generate(model, tokenizer, prompts(questions, texts, couples), max_new_tokens=20)
        return mean(first_name(answer, people) == spouse for answer, spouse in zip(answers, spouses, strict=True))

    body = []
    for given, asked, spouses in (("wife", wives, husbands), ("husband", husbands, wives)):
        for relation in RELATIONS:
            questions = [f"The {relation} of {person} is?" for person in asked]
            shares = [f"{share(questions, spouses, couples):.2f}" for couples in options.couples]
            body.append([f"The {relation} of (a {given}) is?", *shares])
    columns = ["question", *(f"couples in the prompt: {couples}" for couples in options.couples)]
    print(
        Table(
            "names the spouse", columns, body, f"share of the answers; the others are drawn with seed {SEED}"
        ).markdown()
    )


if __name__ == "__main__":
    main()
