"""The ceiling of each task: the share of its answers that the training texts contain, to compare scores with."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerFast

from bico_ext.evaluation.metrics import normalised, normalised_target
from bico_ext.facts.types import FactData, Question, Task
from bico_ext.models.tokenization import train_word_tokenizer


def reachable(facts: FactData) -> dict[str, Any]:
    """Return the ceiling of each task: the share of its targets that some training text contains.

    A target is reachable if `metrics.contains(text, target, answer)` holds for at least one text. If a question accepts
    several answers, one reachable answer is enough. A model can still give an answer that no text contains, by putting
    the words together itself. So this bounds what copying can reach.

    The training texts are those of `facts.train` and `facts.pretraining`. For a model that is not pre-trained, leave
    out the latter with `dataclasses.replace(facts, pretraining=())`. `facts.other_order` does not count.

    Args:
        facts: the training texts and tasks. A set without tasks has no ceilings.

    Returns:
        The "data" of `results.json`, ready for JSON:

            {"name", "tasks": {task: {"answer", "counterpart", "n", "reachable",
                                      "templates": {template: {"n", "reachable", "unseen_words"}}}}}

        "n" is the number of questions and "reachable" a share from 0 to 1. "unseen_words" lists the words that all
        questions of the template use, so that they belong to the template and not to the entity, but no training text
        uses. Words and punctuation marks are split as in `train_word_tokenizer`, case-sensitively, and listed in the
        order of the template. The leading space is part of a word, so "Who" after a quotation mark differs from " Who".
        Questions without a template count for their task only.

    Raises:
        ValueError: a target has no text, or the training texts hold no word.

    Example:
        >>> from bico_ext.facts.loader import load_facts
        >>> task = reachable(load_facts("synthetic"))["tasks"]["N2D-reverse"]
        >>> task["counterpart"], task["n"], task["reachable"]
        ('D2N', 150, 1.0)
    """
    trained = [example.text for example in (*facts.train, *facts.pretraining)]
    texts = {normalised(text) for text in trained}
    words = train_word_tokenizer(trained)
    return {"name": facts.name, "tasks": {name: _ceiling(task, texts, words) for name, task in facts.tasks.items()}}


def _ceiling(task: Task, texts: Iterable[str], words: PreTrainedTokenizerFast) -> dict[str, Any]:
    targets = {
        question: [normalised_target(answer, task.answer) for answer in question.accepted] for question in task.examples
    }
    found = {target: any(target in text for text in texts) for target in {*chain.from_iterable(targets.values())}}
    templates: dict[str, list[Question]] = {}
    for question in task.examples:
        if question.template is not None:
            templates.setdefault(question.template, []).append(question)

    def counted(questions: Iterable[Question]) -> dict[str, Any]:
        hits = [any(found[target] for target in targets[question]) for question in questions]
        return {"n": len(hits), "reachable": sum(hits) / len(hits)}

    return {
        "answer": task.answer,
        "counterpart": task.counterpart,
        **counted(task.examples),
        "templates": {
            template: {**counted(questions), "unseen_words": _unseen_words(questions, words)}
            for template, questions in templates.items()
        },
    }


def _unseen_words(questions: Iterable[Question], words: PreTrainedTokenizerFast) -> list[str]:
    """Return the words that all prompts share and the tokenizer does not know."""
    first, *others = [_unknown(question.prompt, words) for question in questions]
    return [word for word in first if all(word in unknown for unknown in others)]


def _unknown(prompt: str, words: PreTrainedTokenizerFast) -> list[str]:
    encoded = words(prompt, return_offsets_mapping=True)
    tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return list(dict.fromkeys(prompt[slice(*span)].strip() for id_, span in tokens if id_ == words.unk_token_id))
