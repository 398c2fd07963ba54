"""Evaluation of a model on tasks: ordinary greedy causal generation, and the scores of the answers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bico_ext.evaluation import metrics
from bico_ext.evaluation.intervals import clustered_interval, wilson_interval
from bico_ext.evaluation.likelihood import likelihood_test
from bico_ext.facts.types import Question, Task
from bico_ext.generation.greedy import generate
from bico_ext.generation.inference import BATCH_SIZE


@dataclass(frozen=True)
class Prediction:
    """One question, the model's answer and its scores (see `bico_ext.evaluation.metrics`).

    Where several answers are right, each score is the best that any of them gives.

    Attributes:
        task: the task's key in the mapping given to `evaluate`.
        prompt: the question.
        target: the expected answer, as in the data; the main one of several.
        completion: everything that the model wrote.
        contains: whether the completion contains a right answer, ignoring case.
        exact_match: whether the completion equals a right answer, apart from surrounding white space.
        bleu_char: the paper's character-level BLEU-4, 0 to 1.
        bleu: sacrebleu's word-level BLEU-4, 0 to 1.
        entity: the entity that the question is about. None if the data does not tell.
        template: the question's prompt with "..." in place of the entity. None if the data does not tell.
        any_wording: whether the completion contains any right answer that this task has for the entity, whatever its
            wording. None if the task does not ask for descriptions, or if all its questions about an entity have the
            same right answers.
        echo: whether the completion has the name that the question gives and no right answer (`metrics.echoes`). None
            unless all tasks ask for names, and so give names, too; and if the question has no template, which tells
            what it gives.
        also: the other right answers, as in the data.
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
    echo: bool | None = None
    also: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the line of `predictions.jsonl`: all fields, but `also` only if there are other right answers.

        Example:
            >>> row = Prediction("t", "Who?", " Ada", " Bo", True, True, 0.0, 1.0, also=(" Bo",)).to_json()
            >>> row["target"], row["also"]
            (' Ada', (' Bo',))
        """
        return {name: value for name, value in asdict(self).items() if name != "also" or value}


@dataclass(frozen=True)
class Evaluation:
    """All answers of a model and their scores.

    Attributes:
        predictions: the predictions, task after task, in the order of the questions.
        likelihood: the results of `bico_ext.evaluation.likelihood.likelihood_test` by task, if they were asked for.
    """

    predictions: tuple[Prediction, ...]
    likelihood: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return the scores of each task, ready for JSON.

        Returns:
            A mapping for each task:

            * "n": the number of questions;
            * "contains", "exact_match", "bleu_char", "bleu": means over the questions, 0 to 1;
            * "contains_interval", "exact_match_interval": 95 % Wilson intervals [low, high]. They treat questions as
              independent, so they are too narrow if several questions ask about the same entity, as in the data of
              Berglund et al. (30 entities in 10 templates);
            * "contains_entity_interval", "exact_match_entity_interval": for such questions, 95 % intervals over the
              entities (`bico_ext.evaluation.intervals.clustered_interval`);
            * "templates", "entities": the mean of `contains` per template and per entity, if the questions have them;
            * "any_wording": its mean, if descriptions have several wordings;
            * "echo": its mean, if all tasks ask for names and the questions have templates;
            * "likelihood": the log-probability test, if it was asked for.
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
    distributed: bool = False,
) -> Evaluation:
    """Ask every question of every task and score the answers.

    Args:
        model: as in `bico_ext.generation.greedy.generate`.
        tokenizer: the model's tokenizer.
        tasks: the tasks by name, such as `FactData.tasks`.
        max_new_tokens: the most tokens of a completion. The default is that of the paper's script, 40.
        batch_size: as in `generate`.
        likelihood: whether to run the log-probability test, too, on the tasks whose questions have distractors.
        progress: whether to show a progress bar.
        generator: the function that writes the answers, with the signature of `generate`, which is the default. For a
            model that fills blanks, use `bico_ext.generation.blanks.generate_blank`.
        distributed: whether the processes of the process group divide the questions among them, batch by batch. All of
            them must make this call, and each gets all predictions, the same as those of one process. By default the
            calling process does all the work, and needs no other one.

    Returns:
        All predictions. `Evaluation.summary` gives their scores.

    Raises:
        RuntimeError: as in `generate`.
        TypeError: tasks is no mapping; and as in `generate`.
        ValueError: there are no tasks, or one has no examples; the generator does not return one text for each prompt;
            and as in `generate` and `likelihood_test`.

    Example:
        >>> data = load_facts("synthetic")  # doctest: +SKIP
        >>> evaluate(model, tokenizer, data.tasks).summary()["N2D-reverse"]["contains"]  # doctest: +SKIP
        0.91
    """
    if not isinstance(tasks, Mapping):
        raise TypeError(f"tasks must map names to tasks, as load_facts(...).tasks does, got {type(tasks).__name__}")
    if not tasks:
        raise ValueError("tasks must have at least one task, got none; a data set without tests cannot be evaluated")
    empty = [name for name, task in tasks.items() if not task.examples]
    if empty:
        raise ValueError(f"tasks must have at least one example each, got none for {', '.join(empty)}; leave them out")
    extra = {"distributed": True} if distributed else {}  # a generator of one's own may not have this option
    prompts = [example.prompt for task in tasks.values() for example in task.examples]
    answers = (generator or generate)(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress, **extra
    )
    completions = None if isinstance(answers, str) or not isinstance(answers, Iterable) else list(answers)
    if completions is None or len(completions) != len(prompts) or not all(isinstance(x, str) for x in completions):
        got = "" if completions is None else f"{len(completions)} items: "
        raise ValueError(
            f"generator must return one text for each of the {len(prompts)} prompts, got {got}{answers!r:.60}"
        )
    left = iter(completions)
    names_only = all(task.answer == "name" for task in tasks.values())
    predictions = []
    for name, task in tasks.items():
        wordings = _wordings(task)
        for example in task.examples:
            completion, accepted = next(left), example.accepted
            given = _given(example) if names_only else None
            predictions.append(
                Prediction(
                    task=name,
                    prompt=example.prompt,
                    target=example.completion,
                    completion=completion,
                    contains=any(metrics.contains(completion, target, task.answer) for target in accepted),
                    exact_match=any(metrics.exact_match(completion, target) for target in accepted),
                    bleu_char=max(metrics.bleu_char(completion, target) for target in accepted),
                    bleu=max(metrics.bleu(completion, target) for target in accepted),
                    entity=example.entity,
                    template=example.template,
                    any_wording=any(
                        metrics.contains(completion, wording, task.answer)
                        for wording in wordings.get(example.entity, accepted)
                    )
                    if wordings
                    else None,
                    echo=all(metrics.echoes(completion, target, given) for target in accepted) if given else None,
                    also=example.also,
                )
            )
    tests = {
        name: likelihood_test(model, tokenizer, task, batch_size=batch_size, progress=progress, distributed=distributed)
        for name, task in tasks.items()
        if likelihood and any(example.distractor is not None for example in task.examples)
    }
    return Evaluation(tuple(predictions), tests)


def _wordings(task: Task) -> dict[str | None, set[str]]:
    """Return the wordings of the description of each entity: the right answers of a task that asks for descriptions.

    The result is empty if all questions about an entity have the same right answers, and for a task that asks for
    names: two names of an entity are two facts, not two wordings.
    """
    wordings: dict[str | None, set[str]] = {}
    for example in task.examples:
        if task.answer == "description" and example.entity is not None:
            wordings.setdefault(example.entity, set()).update(example.accepted)

    def compared(targets: Iterable[str]) -> set[str]:
        return {metrics.normalised_target(target, task.answer) for target in targets}

    several = any(
        compared(wordings[example.entity]) != compared(example.accepted)
        for example in task.examples
        if example.entity in wordings
    )
    return wordings if several else {}


def _given(question: Question) -> str | None:
    """Return what the prompt has in place of the "..." of its template; None if the template does not tell."""
    before, gap, after = (question.template or "").partition("...")
    if not gap or not (question.prompt.startswith(before) and question.prompt.endswith(after)):
        return None
    return question.prompt[len(before) : len(question.prompt) - len(after)].strip() or None


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
        "contains_interval": list(wilson_interval(contained, n)),
        "exact_match_interval": list(wilson_interval(exact, n)),
    }
    by_entity: dict[object, list[Prediction]] = {}
    for place, prediction in enumerate(predictions):  # a question about no known entity stands for itself
        by_entity.setdefault(place if prediction.entity is None else prediction.entity, []).append(prediction)
    if 1 < len(by_entity) < n:
        for metric in ("contains", "exact_match"):
            clusters = [[getattr(prediction, metric) for prediction in members] for members in by_entity.values()]
            scores[f"{metric}_entity_interval"] = list(clustered_interval(clusters))
    for metric in ("any_wording", "echo"):
        values = [value for prediction in predictions if (value := getattr(prediction, metric)) is not None]
        if values:
            scores[metric] = mean(values)
    parts = {
        "templates": _contained_by([(prediction.template, prediction.contains) for prediction in predictions]),
        "entities": _contained_by([(prediction.entity, prediction.contains) for prediction in predictions]),
    }
    return scores | {name: part for name, part in parts.items() if part}


def _contained_by(pairs: Iterable[tuple[str | None, bool]]) -> dict[str, float]:
    """Return the share of contained answers per group; questions without a group are left out."""
    groups: dict[str, list[bool]] = {}
    for group, contained in pairs:
        if group is not None:
            groups.setdefault(group, []).append(contained)
    return {group: mean(values) for group, values in groups.items()}
