"""Asks a model the questions of its tasks, by ordinary greedy causal generation, and scores what it writes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bico_ext.evaluation import metrics
from bico_ext.evaluation.likelihood import likelihood_test
from bico_ext.facts.types import Task
from bico_ext.generation.greedy import generate
from bico_ext.generation.inference import BATCH_SIZE


@dataclass(frozen=True)
class Prediction:
    """One question, what the model wrote, and its scores (defined in `bico_ext.evaluation.metrics`).

    Attributes:
        task: the task's key in the mapping given to `evaluate`.
        prompt: the question.
        target: the expected answer, as in the data.
        completion: all that the model wrote.
        contains: the target occurs in the completion, whatever the case of letters.
        exact_match: the completion is the target, but for surrounding white space.
        bleu_char: the paper's character-level BLEU-4, 0 to 1.
        bleu: sacrebleu's word-level BLEU-4, 0 to 1.
        entity: what the question asks about; None where the data does not say.
        template: the question's prompt with "..." for the entity; None where the data does not say.
        any_wording: the completion contains a target of this task's questions about the entity, in whichever wording;
            None in a task that does not ask for descriptions, or has one form of each.
    """

    task: str
    prompt: str
    target: str
    completion: str
    contains: bool
    exact_match: bool
    bleu_char: float
    bleu: float
    entity: str | None = None
    template: str | None = None
    any_wording: bool | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a model answered.

    Attributes:
        predictions: all of them, task after task, each in the order of its examples.
        likelihood: the log-probability tests by task (`bico_ext.evaluation.likelihood.likelihood_test`), as far as asked for.
    """

    predictions: tuple[Prediction, ...]
    likelihood: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Scores of each task, ready for JSON.

        Returns:
            By task: "n" (questions), the means "contains", "exact_match", "bleu_char" and "bleu", all 0 to 1, and
            "contains_interval" and "exact_match_interval", 95 % Wilson intervals [low, high]. The intervals take
            questions as independent; where several ask about the same fact, as in the data of Berglund et al. (30
            facts in 10 wordings), they are too narrow. Where questions say so, "templates" and "entities": the mean of
            contains by wording and by entity; where descriptions have several forms, the mean of "any_wording".
            "likelihood" where that test was made.
        """
        by_task: dict[str, list[Prediction]] = {}
        for prediction in self.predictions:
            by_task.setdefault(prediction.task, []).append(prediction)
        tests = {task: {"likelihood": test} for task, test in self.likelihood.items()}
        return {task: _scores(predictions) | tests.get(task, {}) for task, predictions in by_task.items()}


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Task],
    *,
    max_new_tokens: int = 40,
    batch_size: int = BATCH_SIZE,
    likelihood: bool = False,
    progress: bool = True,
    generator: Callable[..., list[str]] | None = None,
) -> Evaluation:
    """Asks every question of every task and scores the answers.

    Args:
        model: as in `generate`.
        tokenizer: the model's.
        tasks: by name, such as `FactData.tasks`.
        max_new_tokens: longest completion in tokens; 40 as in the paper's script.
        batch_size: as in `generate`.
        likelihood: whether to make the log-probability test as well, for the tasks whose questions have distractors.
        progress: whether to show a progress bar.
        generator: how answers are written, a function like `generate`, the default; `blank_generation.generate_blank`
            for a model that fills blanks.

    Returns:
        The predictions, all kept, and their summary.

    Raises:
        ValueError: there are no tasks, or one has no examples; and as in `generate` and `likelihood_test`.

    Example:
        >>> data = load_facts("synthetic")  # doctest: +SKIP
        >>> evaluate(model, tokenizer, data.tasks).summary()["N2D-reverse"]["contains"]  # doctest: +SKIP
        0.91
    """
    if not tasks:
        raise ValueError("tasks must have at least one task, got none; a data set without tests cannot be evaluated")
    empty = [name for name, task in tasks.items() if not task.examples]
    if empty:
        raise ValueError(f"tasks must have at least one example each, got none for {', '.join(empty)}; leave them out")
    prompts = [example.prompt for task in tasks.values() for example in task.examples]
    completions = iter(
        (generator or generate)(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
        )
    )
    predictions = []
    for name, task in tasks.items():
        wordings = _wordings(task)
        for example in task.examples:
            completion, target = next(completions), example.completion
            targets = wordings.get(example.entity, {target})
            predictions.append(
                Prediction(
                    task=name,
                    prompt=example.prompt,
                    target=target,
                    completion=completion,
                    contains=metrics.contains(completion, target, task.answer),
                    exact_match=metrics.exact_match(completion, target),
                    bleu_char=metrics.bleu_char(completion, target),
                    bleu=metrics.bleu(completion, target),
                    entity=example.entity,
                    template=example.template,
                    any_wording=any(metrics.contains(completion, one, task.answer) for one in targets)
                    if wordings
                    else None,
                )
            )
    tests = {
        name: likelihood_test(model, tokenizer, task, batch_size=batch_size, progress=progress)
        for name, task in tasks.items()
        if likelihood and any(example.distractor is not None for example in task.examples)
    }
    return Evaluation(tuple(predictions), tests)


def _wordings(task: Task) -> dict[str | None, set[str]]:
    """By entity, the targets that a task for descriptions has for it.

    Empty where no entity has several, and for names: two names of one entity are two facts, not two wordings.
    """
    wordings: dict[str | None, set[str]] = {}
    for example in task.examples:
        if task.answer == "description" and example.entity is not None:
            wordings.setdefault(example.entity, set()).add(example.completion)
    several = any(len({metrics.normalised_target(one, task.answer) for one in own}) > 1 for own in wordings.values())
    return wordings if several else {}


def _scores(predictions: Sequence[Prediction]) -> dict[str, Any]:
    n = len(predictions)
    contained = sum(prediction.contains for prediction in predictions)
    exact = sum(prediction.exact_match for prediction in predictions)
    scores: dict[str, Any] = {
        "n": n,
        "contains": contained / n,
        "exact_match": exact / n,
        "bleu_char": sum(prediction.bleu_char for prediction in predictions) / n,
        "bleu": sum(prediction.bleu for prediction in predictions) / n,
        "contains_interval": list(metrics.wilson_interval(contained, n)),
        "exact_match_interval": list(metrics.wilson_interval(exact, n)),
    }
    in_any = [prediction.any_wording for prediction in predictions if prediction.any_wording is not None]
    if in_any:  # then all have it
        scores["any_wording"] = mean(in_any)
    parts = {
        "templates": _contained_by([(prediction.template, prediction.contains) for prediction in predictions]),
        "entities": _contained_by([(prediction.entity, prediction.contains) for prediction in predictions]),
    }
    return scores | {name: part for name, part in parts.items() if part}


def _contained_by(pairs: Iterable[tuple[str | None, bool]]) -> dict[str, float]:
    """The share of contained answers by group; questions of no known group are left out."""
    groups: dict[str, list[bool]] = {}
    for group, contained in pairs:
        if group is not None:
            groups.setdefault(group, []).append(contained)
    return {group: mean(values) for group, values in groups.items()}
