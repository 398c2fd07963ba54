"""Filling of gaps: generation for models trained by span infilling (`bico_ext.objectives.infilling`)."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bico_ext.bounds import check_bounds
from bico_ext.generation.inference import BATCH_SIZE, check_loaded, evaluation_mode, is_rank_0
from bico_ext.models.attach import check_attached
from bico_ext.models.span_cache import SpanCache
from bico_ext.models.tokenization import check_context, check_ids, encode_prompt, encode_suffix
from bico_ext.ops.reference import CAUSAL_CONTEXT

LENGTHS = range(1, 9)  # by default


@dataclass(frozen=True)
class _Candidate:
    """A gap that is to be filled with a given number of tokens."""

    gap: tuple[str, str]
    prefix: list[int]
    suffix: list[int]
    length: int

    @property
    def total(self) -> int:
        """The number of tokens of the whole text."""
        return len(self.prefix) + self.length + len(self.suffix)


def generate_infill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    gaps: Iterable[tuple[str, str]],
    *,
    lengths: Collection[int] = LENGTHS,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    mirror: bool = True,
    causal_context: bool = False,
) -> list[str]:
    """Write the missing middle of each text greedily, with a KV cache.

    Prefix and suffix see each other in both directions, at the positions that they have in the whole text. The middle
    is written from left to right, and each of its tokens sees the prefix, the suffix and the middle so far.

    Nothing in training marks the end of a span, and the positions of the suffix depend on its length. So a middle of
    each of the `lengths` is written, and the one is returned whose whole text, read causally, the model finds most
    likely. InCoder chooses among middles in this way (left-to-right reranking, arXiv 2204.05999). The total is
    compared, so a middle of the wrong length pays for the suffix that does not follow from it. The mean log-probability
    per token of the middle alone, by which Mask-Predict chooses a length (arXiv 1904.09324), would not notice that
    a middle is too short: its first words are likely even if there is no room for the rest.

    During generation the model is in evaluation mode, which is restored, also after an error. With several ranks each
    rank fills all gaps. If two tokens are nearly tied, which happens above all in half precision, the batch size can
    decide between them.

    Args:
        model: a causal LM prepared by `bico_ext.models.attach` and trained with the objective `infill`,
            `infill-naive` or `infill-causal`, or a PEFT model around one.
        tokenizer: the model's tokenizer, a fast one. What it puts in front of a text (BOS or nothing) is put before
            the prefix, and EOS after the suffix, if the tokenizer has one, as in training.
        gaps: pairs (prefix, suffix), in any order; equal ones are filled once. The two are tokenised separately, so
            where a gap begins or ends within a word, or between a space and its word, their tokens may differ from
            those of the whole text. An empty prefix asks for the start of a text, an empty suffix for its end. If the
            tokenizer has no EOS, an empty suffix leaves the end open, and the shortest middle is the likeliest.
        lengths: the numbers of tokens that the middle may have, each at least 1; default 1 to 8.
        batch_size: the number of texts in a batch, at least 1; default 128. Each gap counts once for each length.
            Lower it if memory runs out: there are logits for all tokens of the middles and suffixes of a batch.
        progress: whether to show a progress bar, on rank 0 only.
        mirror: False for a model trained by `infill-naive`; default True.
        causal_context: True for a model trained by `infill-causal`, which reads the context causally, except for the
            token before the gap; default False.

    Returns:
        One middle per gap, in the given order, with its spaces: prefix + middle + suffix is the whole text.

    Raises:
        RuntimeError: the model is not attached.
        TypeError: an argument has the wrong type, such as gaps that are not pairs of texts.
        ValueError: lengths is empty or holds a number below 1; batch_size is less than 1; the tokenizer is a slow one;
            a prefix has no tokens (it is empty and the tokenizer adds no BOS); or a text with the longest middle does
            not fit in the model's context or in the sliding window of its layers.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from bico_ext.models.attach import attach
        >>> from bico_ext.models.tokenization import train_word_tokenizer
        >>> tokenizer = train_word_tokenizer(["Ada wrote the first program."])
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=len(tokenizer))
        >>> model = attach(LlamaForCausalLM(config))
        >>> (middle,) = generate_infill(model, tokenizer, [("Ada", " program.")], lengths=[3], progress=False)
        >>> len(tokenizer.tokenize(middle.strip()))
        3
    """
    check_loaded(model, tokenizer)
    pairs = list(gaps)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise TypeError(f"gaps must hold pairs of texts, (prefix, suffix), got {pair!r:.60}")
    if not isinstance(lengths, Collection) or not all(isinstance(length, Integral) for length in lengths):
        raise TypeError(f"lengths must hold numbers of tokens, such as range(1, 9), got {lengths!r:.60}")
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] < 1:
        raise ValueError(f"lengths must hold numbers of tokens, each at least 1, got {lengths}")
    check_bounds(batch_size=batch_size)
    check_attached(model)  # a stock model would silently ignore span ids
    candidates = [
        _Candidate(gap, prefix, suffix, length)
        for gap in dict.fromkeys((prefix, suffix) for prefix, suffix in pairs)
        for prefix, suffix in [_encode(model, tokenizer, *gap, longest=lengths[-1])]
        for length in lengths
    ]
    # A batch takes as many steps as its longest middle has tokens, so middles of one length go together. The longest
    # ones come first, so that a batch that does not fit in memory fails soon.
    candidates.sort(key=lambda candidate: (candidate.length, candidate.total), reverse=True)
    forbidden = _forbidden(model, tokenizer)
    best: dict[tuple[str, str], tuple[float, _Candidate, list[int]]] = {}
    shown = tqdm(total=len(candidates), desc="infill", unit="text", disable=not (progress and is_rank_0()))
    with shown as bar, evaluation_mode(model), torch.no_grad():
        for start in range(0, len(candidates), batch_size):
            batch = candidates[start : start + batch_size]
            middles = _middles(model, batch, forbidden, mirror=mirror, causal_context=causal_context)
            scores = _log_probabilities(model, batch, middles) if len(lengths) > 1 else [0.0] * len(batch)
            for row, ids, score in zip(batch, middles, scores, strict=True):
                if row.gap not in best or score > best[row.gap][0]:
                    best[row.gap] = score, row, ids
            bar.update(len(batch))
    texts = {}
    for gap, (_, row, ids) in best.items():
        prefix, both = tokenizer.batch_decode([row.prefix, row.prefix + ids], skip_special_tokens=True)
        texts[gap] = both[len(prefix) :]
    return [texts[prefix, suffix] for prefix, suffix in pairs]


def _encode(
    model: Any, tokenizer: PreTrainedTokenizerBase, prefix: str, suffix: str, *, longest: int
) -> tuple[list[int], list[int]]:
    """Return the ids of prefix and suffix, after a check that they leave room for the longest middle."""
    prefix_ids, suffix_ids = encode_prompt(tokenizer, prefix), encode_suffix(tokenizer, suffix)
    if not prefix_ids:
        raise ValueError(
            f"a prefix must have at least one token, from which the middle is predicted, got none for {prefix!r:.60} "
            f"before {suffix!r:.60}; give a prefix, because this tokenizer puts no BOS in front of a text"
        )
    check_ids(model, prefix_ids + suffix_ids, f"the text from {prefix!r:.60} to {suffix!r:.60}")
    check_context(
        model,
        len(prefix_ids) + longest + len(suffix_ids),
        f"the text from {prefix!r:.60} to {suffix!r:.60} with {longest} tokens between them",
        "shorten it or lower lengths",
        within_window=True,
    )
    return prefix_ids, suffix_ids


def _forbidden(model: Any, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return which ids a middle must not have: special tokens and ids that the tokenizer does not know; bool [V]."""
    forbidden = torch.ones(model.config.get_text_config().vocab_size, dtype=torch.bool)
    special = {*tokenizer.all_special_ids}
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    for token in tokenizer.get_vocab().values():
        if token < len(forbidden):
            forbidden[token] = token in special
    return forbidden.to(model.device)


def _middles(
    model: Any, batch: list[_Candidate], forbidden: Tensor, *, mirror: bool, causal_context: bool
) -> list[list[int]]:
    """Write a middle of the given length for each candidate and return its ids."""
    device = model.device
    gap, after = max(len(row.prefix) for row in batch), max(len(row.suffix) for row in batch)
    context = CAUSAL_CONTEXT if causal_context else 0
    input_ids, position_ids, span_ids = [], [], []
    for row in batch:  # Padding on both sides puts the gap at one place. Its ids and positions do not matter.
        before, behind = len(row.prefix), len(row.suffix)
        left, right = [0] * (gap - before), [0] * (after - behind)
        input_ids.append([*left, *row.prefix, *row.suffix, *right])
        position_ids.append([*left, *range(before), *range(row.total - behind, row.total), *right])
        # The token before the gap predicts the middle, so it sees the context on both sides in `infill-causal`, too.
        visible = [*[context] * (before - 1), 0, *[context] * behind]
        span_ids.append([*[-1] * len(left), *visible, *[-1] * len(right)])
    cache, rows = SpanCache(gap), torch.arange(len(batch), device=device)
    starts = torch.tensor([len(row.prefix) for row in batch], device=device)
    logits = model(
        input_ids=torch.tensor(input_ids, device=device),
        position_ids=torch.tensor(position_ids, device=device),
        span_ids=torch.tensor(span_ids, dtype=torch.int32, device=device),
        output_positions=rows * (gap + after) + gap - 1,
        mirror=mirror,
        span_cache=cache,
    ).logits[0]  # [B, V]
    tokens: list[Tensor] = []
    for step in range(max(row.length for row in batch)):
        if step > 0:
            # A row that is complete goes on, and what it writes is dropped.
            logits = model(
                input_ids=tokens[-1][:, None],
                position_ids=(starts + step - 1)[:, None],
                span_ids=torch.ones_like(tokens[-1], dtype=torch.int32)[:, None],
                output_positions=rows,
                span_cache=cache,
            ).logits[0]
        tokens.append(logits.masked_fill(forbidden, -torch.inf).argmax(dim=-1))
    written = torch.stack(tokens, dim=1).tolist()
    return [ids[: row.length] for row, ids in zip(batch, written, strict=True)]


def _log_probabilities(model: Any, batch: list[_Candidate], middles: list[list[int]]) -> list[float]:
    """Return log p(middle and suffix | prefix) for each candidate under ordinary causal prediction."""
    width = max(row.total for row in batch)
    input_ids: list[list[int]] = []
    places: list[int] = []
    targets: list[int] = []
    for index, (row, middle) in enumerate(zip(batch, middles, strict=True)):
        scored = [*middle, *row.suffix]
        input_ids.append([*row.prefix, *scored, *[0] * (width - row.total)])  # nothing causal sees the padding
        first = index * width + len(row.prefix) - 1
        places.extend(range(first, first + len(scored)))
        targets.extend(scored)
    ids = torch.tensor(input_ids, device=model.device)
    logits = model(
        input_ids=ids,
        span_ids=torch.ones_like(ids, dtype=torch.int32),  # causal, also if the model is attached as bidirectional
        output_positions=torch.tensor(places, device=model.device),
    ).logits[0]
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    of_targets = log_p.gather(1, torch.tensor(targets, device=model.device)[:, None])[:, 0]
    return [float(part.sum()) for part in of_targets.split([row.total - len(row.prefix) for row in batch])]
