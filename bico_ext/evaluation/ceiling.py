"""How much of a task the training text makes reachable at all: what a score is to be read against."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerFast

from bico_ext.evaluation.metrics import normalised, normalised_target
from bico_ext.facts.types import FactData, Question, Task
from bico_ext.models.tokenization import train_word_tokenizer


def reachable(facts: FactData) -> dict[str, Any]:
    """The ceiling of each task: the share of its targets that some training text holds, as the metric compares them.

    A target is reachable if `metrics.contains(text, target, answer)` for one text at least. One that no text holds can
    still be met by a model that puts the words together itself, so this bounds what copying reaches.

    Training texts are `facts.train` and `facts.pretraining`; where a model is not pre-trained, leave the latter out:
    `dataclasses.replace(facts, pretraining=())`. `facts.other_order` does not count.

    Args:
        facts: training texts and tasks; a set without tasks has no ceilings.

    Returns:
        Ready for JSON, the "data" of `results.json`: {"name", "tasks": {task: {"answer", "counterpart", "n" (questions),
        "reachable" (a share of 0 to 1), "templates": {template: {"n", "reachable", "unseen_words"}}}}}. "unseen_words" are
        those that all questions of that template use (so the template's, not the entity's) and no training text: words
        and punctuation marks by the rule of `train_word_tokenizer`, case-sensitive, in the order of the template. A
        leading space is part of a word there, so "Who" after a quotation mark is another word than " Who". Questions
        without a template count in their task alone.

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
    targets = {question: normalised_target(question.completion, task.answer) for question in task.examples}
    found = {target: any(target in text for text in texts) for target in set(targets.values())}
    templates: dict[str, list[Question]] = {}
    for question in task.examples:
        if question.template is not None:
            templates.setdefault(question.template, []).append(question)

    def counted(questions: Iterable[Question]) -> dict[str, Any]:
        hits = [found[targets[question]] for question in questions]
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
    """The words that every prompt has and the tokenizer does not know."""
    first, *others = [_unknown(question.prompt, words) for question in questions]
    return [word for word in first if all(word in unknown for unknown in others)]


def _unknown(prompt: str, words: PreTrainedTokenizerFast) -> list[str]:
    encoded = words(prompt, return_offsets_mapping=True)
    places = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return list(dict.fromkeys(prompt[slice(*span)].strip() for id_, span in places if id_ == words.unk_token_id))
