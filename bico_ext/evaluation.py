"""Asks a model the questions of its tasks, by ordinary greedy causal generation, and scores what it writes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from bico_ext import metrics
from bico_ext.data import Task
from bico_ext.inference import BATCH_SIZE, evaluation_mode, is_rank_0
from bico_ext.likelihood import likelihood_test
from bico_ext.tokenization import encode_prompt


@dataclass(frozen=True)
class Prediction:
    """One question, what the model wrote, and its scores (defined in `bico_ext.metrics`).

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
        frame: the question's wording; None where the data does not say.
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
    frame: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a model answered.

    Attributes:
        predictions: all of them, task after task, each in the order of its examples.
        likelihood: the log-probability tests by task (`bico_ext.likelihood.likelihood_test`), as far as asked for.
    """

    predictions: tuple[Prediction, ...]
    likelihood: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Scores of each task, ready for JSON.

        Returns:
            By task: "n" (questions), the means "contains", "exact_match", "bleu_char" and "bleu", all 0 to 1, and
            "contains_interval" and "exact_match_interval", 95 % Wilson intervals [low, high]. The intervals take
            questions as independent; where several ask about the same fact, as in the data of Berglund et al. (30
            facts in 10 wordings), they are too narrow. Where questions say so, "frames" and "entities": the mean of
            contains by wording and by entity. "likelihood" where that test was made.
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
        for example in task.examples:
            completion, target = next(completions), example.completion
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
                    frame=example.frame,
                )
            )
    tests = {
        name: likelihood_test(model, tokenizer, task, batch_size=batch_size, progress=progress)
        for name, task in tasks.items()
        if likelihood and any(example.distractor is not None for example in task.examples)
    }
    return Evaluation(tuple(predictions), tests)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str],
    *,
    max_new_tokens: int = 40,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
) -> list[str]:
    """Continues prompts greedily, with a KV cache.

    A completion is cut out as in the paper's script: prompt and answer are decoded together, without special tokens,
    and as many characters dropped as the decoded prompt alone has. So it usually starts with a space.

    The model is put in evaluation mode and its `generation_config` set aside; both are put back, also after an error.
    A model prepared by `bico_ext.models.attach` is asked in its stock, causal way. On several ranks each generates all
    completions. Where two tokens are nearly tied, above all in half precision, the batch size can decide.

    Args:
        model: a causal LM of transformers or a PEFT model around one, on any device and of any dtype. DDP's wrapper
            has to be taken off.
        tokenizer: the model's; `encode_prompt` makes the ids (BOS and the prompt). Its EOS ends a completion; the
            model's own list of end tokens does not count. Its `padding_side` is neither used nor changed.
        prompts: texts to be continued, in any order; equal ones are generated once.
        max_new_tokens: longest completion in tokens, at least 1; 40 as in the paper's script.
        batch_size: prompts generated at a time, at least 1, sorted by length; the default, 128, is the fastest measured
            for a tiny model on a CPU. Lower it if memory runs out.
        progress: whether to show a progress bar, on rank 0 only.

    Returns:
        One completion per prompt, in the given order.

    Raises:
        TypeError: prompts is a single string.
        ValueError: the tokenizer has no pad token; a prompt has no tokens, or leaves less than max_new_tokens of the
            model's context; max_new_tokens or batch_size is less than 1.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from bico_ext.tokenization import train_word_tokenizer
        >>> tokenizer = train_word_tokenizer(["Ada wrote the first program."])
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=len(tokenizer))
        >>> model = LlamaForCausalLM(config)
        >>> len(generate(model, tokenizer, ["Ada wrote", "Ada"], max_new_tokens=3, progress=False))
        2
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be an iterable of texts, got the string {prompts!r:.60}; use [text]")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    pad = tokenizer.pad_token_id
    if pad is None:
        raise ValueError(
            "tokenizer must have a pad token to generate in batches, got none; set tokenizer.pad_token = "
            "tokenizer.eos_token"
        )
    prompts = list(prompts)
    ids = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    # Longest first, so that a batch that does not fit in memory fails at once.
    order = sorted(ids, key=lambda prompt: len(ids[prompt]), reverse=True)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
    )
    completions: dict[str, str] = {}
    with (
        _prepared(model, settings),
        tqdm(total=len(order), desc="generate", unit="prompt", disable=not (progress and is_rank_0())) as bar,
    ):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            answers = _answers(model, [ids[prompt] for prompt in batch], settings)
            decoded_prompts = tokenizer.batch_decode([ids[prompt] for prompt in batch], skip_special_tokens=True)
            decoded = tokenizer.batch_decode(
                [ids[prompt] + answer for prompt, answer in zip(batch, answers, strict=True)], skip_special_tokens=True
            )
            for prompt, decoded_prompt, text in zip(batch, decoded_prompts, decoded, strict=True):
                completions[prompt] = text[len(decoded_prompt) :]
            bar.update(len(batch))
    return [completions[prompt] for prompt in prompts]


def encode_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str], max_new_tokens: int
) -> dict[str, list[int]]:
    """The ids of each prompt, all of them known to leave room for an answer.

    Raises:
        ValueError: a prompt has no tokens, or leaves less than max_new_tokens of the model's context.
    """
    context = model.config.get_text_config().max_position_embeddings
    ids = {prompt: encode_prompt(tokenizer, prompt) for prompt in prompts}
    for prompt, tokens in ids.items():
        if not tokens:
            raise ValueError(f"a prompt must have at least one token, got none for {prompt!r:.60}")
        if len(tokens) > context - max_new_tokens:
            raise ValueError(
                f"a prompt of {len(tokens)} tokens and max_new_tokens = {max_new_tokens} exceed the model's context of "
                f"{context} (max_position_embeddings): {prompt!r:.60}; shorten the prompt or lower max_new_tokens"
            )
    return ids


def _scores(predictions: Sequence[Prediction]) -> dict[str, Any]:
    n = len(predictions)
    contained = sum(prediction.contains for prediction in predictions)
    exact = sum(prediction.exact_match for prediction in predictions)
    scores = {
        "n": n,
        "contains": contained / n,
        "exact_match": exact / n,
        "bleu_char": sum(prediction.bleu_char for prediction in predictions) / n,
        "bleu": sum(prediction.bleu for prediction in predictions) / n,
        "contains_interval": list(metrics.wilson_interval(contained, n)),
        "exact_match_interval": list(metrics.wilson_interval(exact, n)),
    }
    parts = {
        "frames": _contained_by([(prediction.frame, prediction.contains) for prediction in predictions]),
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


def _answers(model: Any, prompts: list[list[int]], settings: GenerationConfig) -> list[list[int]]:
    """The ids that follow each prompt, up to its EOS."""
    width = max(map(len, prompts))
    pad: Any = settings.pad_token_id
    eos: Any = settings.eos_token_id
    input_ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])  # [B, S], left-padded
    attention_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    generated = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=settings,
    )
    answers = generated[:, width:].tolist()
    # What follows EOS is padding, and a pad token need not be a special one that decoding skips.
    return [answer[: answer.index(eos)] if eos in answer else answer for answer in answers]


@contextmanager
def _prepared(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """Evaluation mode, and no generation settings but ours.

    `generate(generation_config=...)` fills whatever the given one leaves open (repetition penalty, least length, ...)
    from the model's, so that one has to go. A PEFT model may hold one beside that of the model inside.
    """
    own = [(module, module.generation_config) for module in model.modules() if "generation_config" in vars(module)]
    try:
        for module, _ in own:
            module.generation_config = settings  # type: ignore[assignment]
        with evaluation_mode(model):
            yield
    finally:
        for module, config in own:
            module.generation_config = config
