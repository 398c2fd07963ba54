"""Does a model find the right answer likelier than a wrong one, whatever it writes? The test of Berglund et al. 2023.

A model may know more than greedy generation shows. So the log-probabilities of right answers are compared with those of
distractors, wrong answers of the same kind to the same questions. Where the two sets do not differ, nothing was learned
in that direction.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bico_ext.bounds import check_bounds
from bico_ext.facts.types import Example, Task
from bico_ext.generation.inference import BATCH_SIZE, evaluation_mode, is_rank_0
from bico_ext.models.tokenization import check_context, encode_prompt


def log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    *,
    per_token: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
) -> list[float]:
    """log p(completion | prompt) under ordinary causal prediction, in nats.

    Prompt and completion are encoded in one piece, as in training, without an EOS. Scored are the tokens after the
    prompt's. Where a tokenizer joins the end of a prompt with the start of its completion, the prompt's ids are not the
    first ids of the text; then scoring starts with the first token that differs, so that the joined token counts as
    part of the completion.

    The model runs in evaluation mode and each of its modules is put back in the mode that it was in. Log-softmax and
    sum are in float32 whatever the model's dtype.

    Args:
        model: a causal LM of transformers or a PEFT model around one, on any device and of any dtype. One prepared by
            `bico_ext.models.attach` is asked in its stock, causal way.
        tokenizer: the model's; it needs no pad token, and its `padding_side` is not used: rows are filled on the right.
        examples: prompts and the completions to score, in any order.
        per_token: whether to divide each value by the number of its scored tokens.
        batch_size: texts at a time, at least 1, sorted by length; default 128, as in `generation.generate`. Lower it if
            memory runs out: a batch's logits are [batch_size, longest text, vocabulary].
        progress: whether to show a progress bar, on rank 0 only.

    Returns:
        One value per example, at most 0, in the given order.

    Raises:
        ValueError: batch_size is less than 1; a completion has no token of its own, or no token stands before it; a
            text exceeds the model's context.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from bico_ext.models.tokenization import train_word_tokenizer
        >>> tokenizer = train_word_tokenizer(["Ada wrote the first program."])
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=len(tokenizer))
        >>> model = LlamaForCausalLM(config)
        >>> examples = [Example("Ada", " wrote"), Example("Ada", " wrote the")]
        >>> short, long = log_probabilities(model, tokenizer, examples, progress=False)
        >>> long < short < 0
        True
    """
    scored = _score(model, tokenizer, list(examples), batch_size, progress)
    return [score.per_token if per_token else score.total for score in scored]


def likelihood_test(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
) -> dict[str, Any]:
    """Compares the log-probabilities of a task's right answers with those of its distractors.

    Two tests, as in Berglund et al.: the paired t-test asks whether the mean difference is 0, the two-sample
    Kolmogorov-Smirnov test whether both sets come from one distribution. They take questions as independent; where
    several ask about one fact their p-values are too small.

    Args:
        model, tokenizer, batch_size, progress: as in `log_probabilities`.
        task: its questions without a distractor are left out.

    Returns:
        Ready for JSON: "n" (questions with a distractor); "correct" and "distractor", mean log-probabilities of whole
        answers, and "correct_per_token" and "distractor_per_token", of a token, since a longer answer is less likely;
        "difference", the mean of correct - distractor; "t" and "t_p" (two-sided); "ks" and "ks_p"; "preferred", the
        share of questions whose right answer is the likelier. None stands where a value is not defined or infinite: t
        and its p for one question, or where all differences are equal.

    Raises:
        ValueError: no question has a distractor; and as in `log_probabilities`.

    Example:
        >>> likelihood_test(model, tokenizer, facts.tasks["N2D-reverse"])["t_p"]  # doctest: +SKIP
        0.43
    """
    pairs = [(question, question.distractor) for question in task.examples if question.distractor is not None]
    if not pairs:
        raise ValueError(f"task {task.name} must have a question with a distractor, got none; leave the test out")
    right = [Example(question.prompt, question.completion) for question, _ in pairs]
    wrong = [Example(question.prompt, distractor) for question, distractor in pairs]
    scores = _score(model, tokenizer, right + wrong, batch_size, progress)
    correct, distractor = scores[: len(pairs)], scores[len(pairs) :]
    return {
        **_compare([score.total for score in correct], [score.total for score in distractor]),
        "correct_per_token": _finite(mean(score.per_token for score in correct)),
        "distractor_per_token": _finite(mean(score.per_token for score in distractor)),
    }


@dataclass(frozen=True)
class _Score:
    total: float  # log p of all scored tokens
    tokens: int

    @property
    def per_token(self) -> float:
        return self.total / self.tokens


def _compare(correct: list[float], distractor: list[float]) -> dict[str, Any]:
    from scipy.stats import ks_2samp, ttest_rel  # here: the import takes a second, which training need not wait for

    differences = [right - wrong for right, wrong in zip(correct, distractor, strict=True)]
    defined = len(set(differences)) > 1  # without variance t is 0/0 or infinite, and rounding may make it any number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a lost digit where differences are nearly equal
        paired = ttest_rel(correct, distractor) if defined else None
        two_sample = ks_2samp(correct, distractor)
    return {
        "n": len(correct),
        "correct": _finite(mean(correct)),
        "distractor": _finite(mean(distractor)),
        "difference": _finite(mean(differences)),
        "t": _finite(paired.statistic) if paired else None,
        "t_p": _finite(paired.pvalue) if paired else None,
        "ks": _finite(two_sample.statistic),
        "ks_p": _finite(two_sample.pvalue),
        "preferred": mean(difference > 0 for difference in differences),
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity, which a diverged model gives."""
    return float(value) if math.isfinite(value) else None


def _score(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: list[Example], batch_size: int, progress: bool
) -> list[_Score]:
    check_bounds(batch_size=batch_size)
    encoded = [_encode(model, tokenizer, example) for example in examples]
    scores: dict[int, _Score] = {}
    # Longest first, so that a batch that does not fit in memory fails at once.
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place][0]), reverse=True)
    with (
        torch.no_grad(),
        evaluation_mode(model),
        tqdm(total=len(order), desc="score", unit="text", disable=not (progress and is_rank_0())) as bar,
    ):
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            totals = _totals(model, [encoded[place] for place in places])
            for place, total in zip(places, totals, strict=True):
                ids, start = encoded[place]
                scores[place] = _Score(total, len(ids) - start)
            bar.update(len(places))
    return [scores[place] for place in range(len(examples))]


def _encode(model: Any, tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[list[int], int]:
    """The ids of the text, and the place of the first one to score."""
    prompt, ids = encode_prompt(tokenizer, example.prompt), encode_prompt(tokenizer, example.text)
    start = next((i for i, (given, id_) in enumerate(zip(prompt, ids, strict=False)) if given != id_), len(prompt))
    if start >= len(ids):
        raise ValueError(f"completion must add a token to its prompt, got {example.completion!r:.60}")
    if start == 0:
        raise ValueError(
            f"a token must stand before the completion, got none for the prompt {example.prompt!r:.60}; use a "
            "tokenizer with a BOS token or a longer prompt"
        )
    check_context(model, len(ids), f"text {example.text!r:.60}", "shorten it")
    return ids, start


def _totals(model: Any, batch: list[tuple[list[int], int]]) -> list[float]:
    width = max(len(ids) for ids, _ in batch)
    # What fills a row on the right comes after all that is scored, so any id will do.
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch], device=model.device)  # [B, S]
    real = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch], device=model.device)
    logits = model(input_ids=input_ids, attention_mask=real, use_cache=False).logits  # [B, S, V]
    totals = []
    for row, (ids, start) in enumerate(batch):
        # Output i predicts the token at i + 1. Only these rows are raised to float32: a whole batch may not fit.
        predicted = logits[row, start - 1 : len(ids) - 1].float().log_softmax(dim=-1)  # [scored, V]
        targets = input_ids[row, start : len(ids), None]
        totals.append(predicted.gather(-1, targets).sum().item())
    return totals
