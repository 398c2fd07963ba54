"""The log-probability test of Berglund et al. 2023: does a model find right answers likelier than wrong ones?

A model may know more than greedy generation shows. So the test compares the log-probabilities of right answers with
those of distractors: wrong answers of the same kind to the same questions. If the two sets do not differ, the model has
learned nothing in that direction.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from statistics import mean
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bico_ext.bounds import check_bounds
from bico_ext.facts.types import Example, Task
from bico_ext.generation.inference import (
    BATCH_SIZE,
    check_distributed,
    check_loaded,
    evaluation_mode,
    gathered,
    is_rank_0,
    own_batches,
)
from bico_ext.models.tokenization import check_context, check_ids, encode_prompt


def log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    *,
    per_token: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    distributed: bool = False,
) -> list[float]:
    """Return log p(completion | prompt) of each example under ordinary causal prediction, in nats.

    Prompt and completion are encoded together, as in training, without an EOS. The tokens after those of the prompt are
    scored. A tokenizer may join the end of the prompt and the start of the completion in one token. Then scoring starts
    with the first token that differs from the prompt's, so the joined token counts for the completion.

    The model runs in evaluation mode; afterwards each of its modules is back in its earlier mode. Log-softmax and sum
    are computed in float32 whatever the model's dtype.

    Args:
        model: a causal LM of transformers or a PEFT model around one, on any device and of any dtype. A model prepared
            by `bico_ext.models.attach` is used as the stock causal model.
        tokenizer: the model's tokenizer. It needs no pad token. Its `padding_side` is ignored: rows are padded on the
            right.
        examples: the prompts and the completions to score, in any order.
        per_token: whether to divide each value by the number of its scored tokens.
        batch_size: the number of texts in a batch, at least 1; texts are sorted by length. The default is 128, as in
            `bico_ext.generation.greedy.generate`. Lower it if memory runs out: the logits of a batch have the shape
            [batch_size, longest text, vocabulary].
        progress: whether to show a progress bar, on rank 0 only.
        distributed: as in `bico_ext.generation.greedy.generate`.

    Returns:
        One value per example, at most 0, in the given order.

    Raises:
        RuntimeError: distributed is set and there is no process group.
        ValueError: the model is attached with bidirectional=True, batch_size is less than 1, a completion adds no token
            to its prompt, no token precedes a completion, or a text exceeds the model's context.

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
    scored = _score(model, tokenizer, list(examples), batch_size, progress, distributed)
    return [score.per_token if per_token else score.total for score in scored]


def likelihood_test(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    distributed: bool = False,
) -> dict[str, Any]:
    """Compare the log-probabilities of a task's right answers with those of its distractors.

    There are two tests, as in Berglund et al. The paired t-test asks whether the mean difference is 0. The two-sample
    Kolmogorov-Smirnov test asks whether both sets come from the same distribution. Both treat questions as independent,
    so their p-values are too small if several questions ask about the same fact.

    Where a question accepts several answers, the right answer is the one with the highest log-probability. A model that
    knows nothing then prefers it to the distractor in more than half of the questions.

    Args:
        model, tokenizer, batch_size, progress, distributed: as in `log_probabilities`.
        task: the task. Its questions without a distractor are left out.

    Returns:
        A mapping, ready for JSON:

        * "n": the number of questions with a distractor;
        * "correct", "distractor": the mean log-probabilities of whole answers;
        * "correct_per_token", "distractor_per_token": the same answers per token, because a longer one is less likely;
        * "difference": the mean of correct - distractor;
        * "t", "t_p": the statistic of the t-test and its two-sided p-value;
        * "ks", "ks_p": the statistic of the Kolmogorov-Smirnov test and its p-value;
        * "preferred": the share of questions whose right answer is likelier than the distractor.

        A value that is undefined or infinite is None. So are "t" and "t_p" for a single question, and if all
        differences are equal.

    Raises:
        ValueError: no question has a distractor; and as in `log_probabilities`.

    Example:
        >>> likelihood_test(model, tokenizer, facts.tasks["N2D-reverse"])["t_p"]  # doctest: +SKIP
        0.43
    """
    pairs = [(question, question.distractor) for question in task.examples if question.distractor is not None]
    if not pairs:
        raise ValueError(f"task {task.name} must have a question with a distractor, got none; leave the test out")
    right = [Example(question.prompt, answer) for question, _ in pairs for answer in question.accepted]
    wrong = [Example(question.prompt, distractor) for question, distractor in pairs]
    scores = iter(_score(model, tokenizer, right + wrong, batch_size, progress, distributed))
    correct = [max(islice(scores, len(question.accepted)), key=lambda score: score.total) for question, _ in pairs]
    distractor = list(scores)
    return {
        **_compare([score.total for score in correct], [score.total for score in distractor]),
        "correct_per_token": _finite(mean(score.per_token for score in correct)),
        "distractor_per_token": _finite(mean(score.per_token for score in distractor)),
    }


@dataclass(frozen=True)
class _Score:
    total: float  # log p of all scored tokens, in nats
    tokens: int  # their number

    @property
    def per_token(self) -> float:
        return self.total / self.tokens


def _compare(correct: list[float], distractor: list[float]) -> dict[str, Any]:
    # Imported here because it takes a second, which training can do without.
    from scipy.stats import ks_2samp, ttest_rel

    differences = [right - wrong for right, wrong in zip(correct, distractor, strict=True)]
    defined = len(set(differences)) > 1  # without variance, t is 0/0 or infinite, and rounding can give any number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about lost precision if differences are nearly equal
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
    """Return None for NaN and infinity, which a diverged model gives and JSON does not have."""
    return float(value) if math.isfinite(value) else None


def _score(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    batch_size: int,
    progress: bool,
    distributed: bool,
) -> list[_Score]:
    check_loaded(model, tokenizer)
    attachment: Any = getattr(model, "_bico_attachment", None)
    if attachment is not None and attachment.bidirectional:
        raise ValueError(
            "model is attached with bidirectional=True, so it would see the answers that it scores; attach it without "
            "bidirectional"
        )
    check_bounds(batch_size=batch_size)
    check_distributed(model, distributed)
    for example in examples:
        if not isinstance(example, Example):
            raise TypeError(f"examples must hold bico_ext.facts.types.Example, got {example!r:.60}")
    encoded = [_encode(model, tokenizer, example) for example in examples]
    own: dict[int, _Score] = {}
    # The longest texts come first, so that a batch that does not fit in memory fails at once.
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index][0]), reverse=True)
    batches = own_batches(order, batch_size, distributed)
    total = sum(map(len, batches))
    with (
        torch.no_grad(),
        evaluation_mode(model),
        tqdm(total=total, desc="score", unit="text", disable=not (progress and is_rank_0())) as bar,
    ):
        for indices in batches:
            totals = _totals(model, [encoded[index] for index in indices])
            for index, log_probability in zip(indices, totals, strict=True):
                ids, start = encoded[index]
                own[index] = _Score(log_probability, len(ids) - start)
            bar.update(len(indices))
    scores = gathered(own, distributed)
    return [scores[index] for index in range(len(examples))]


def _encode(model: Any, tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[list[int], int]:
    """Return the ids of the text and the index of the first id to score."""
    prompt, ids = encode_prompt(tokenizer, example.prompt), encode_prompt(tokenizer, example.text)
    start = next((i for i, (given, id_) in enumerate(zip(prompt, ids, strict=False)) if given != id_), len(prompt))
    if start >= len(ids):
        raise ValueError(f"completion must add a token to its prompt, got {example.completion!r:.60}")
    if start == 0:
        raise ValueError(
            f"a token must precede the completion, got none for the prompt {example.prompt!r:.60}; use a longer "
            "prompt, or a tokenizer that puts BOS in front of a text"
        )
    check_ids(model, ids, f"text {example.text!r:.60}")
    check_context(model, len(ids), f"text {example.text!r:.60}", "shorten it")
    return ids, start


def _totals(model: Any, batch: list[tuple[list[int], int]]) -> list[float]:
    """Return log p of the scored tokens of each text in the batch."""
    width = max(len(ids) for ids, _ in batch)
    # The padding follows all scored tokens, so any id can be the pad id.
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch], device=model.device)  # [B, S]
    real = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch], device=model.device)
    logits = model(input_ids=input_ids, attention_mask=real, use_cache=False).logits  # [B, S, V]
    totals = []
    for row, (ids, start) in enumerate(batch):
        # Output i predicts the token at i + 1. Only these outputs become float32: those of a whole batch may not fit.
        predicted = logits[row, start - 1 : len(ids) - 1].float()  # [scored, V]
        totals.append(-cross_entropy(predicted, input_ids[row, start : len(ids)], reduction="sum").item())
    return totals
