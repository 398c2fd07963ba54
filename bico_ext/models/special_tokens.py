"""Special tokens such as [MASK]: looking them up in a tokenizer, or adding them to it and to the model."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bico_ext.seeding import stream_seed

# The spellings of known tokenizers: first GLM-4 and ChatGLM-6B, then GLM-10B. The first spelling is the one to add.
# [REV] is the separator of reverse training.
SPELLINGS = {
    "mask": ("[MASK]",),
    "gmask": ("[gMASK]",),
    "sop": ("<sop>", "[sop]", "<|startofpiece|>"),
    "eop": ("<eop>", "[eop]", "<|endofpiece|>"),
    "rev": ("[REV]",),
}


def token_ids(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> dict[str, int]:
    """Look up the ids of special tokens that the tokenizer has.

    Args:
        tokenizer: any transformers tokenizer.
        names: keys of `SPELLINGS`.

    Returns:
        The id of each name, in the given order.

    Raises:
        ValueError: a name is unknown, or the tokenizer lacks the token.

    Example:
        >>> from bico_ext.models.tokenization import train_word_tokenizer
        >>> token_ids(train_word_tokenizer(["Fill the [MASK]."]), [])
        {}
    """
    ids = _known(tokenizer, names)
    missing = [SPELLINGS[name][0] for name, index in ids.items() if index is None]
    if missing:
        raise ValueError(
            f"tokenizer must have the tokens {', '.join(missing)}, but they are not in its vocabulary; load the "
            "tokenizer that was saved with the model, or add them with added_tokens"
        )
    return {name: index for name, index in ids.items() if index is not None}


def added_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, names: Iterable[str]
) -> dict[str, int]:
    """Look up the ids of special tokens, and add the tokens that the tokenizer or the model lacks.

    An added token is special, so decoding skips it. Its rows in the model's input and output embeddings (a single row
    if they are tied) are drawn from a normal distribution. In each dimension it has the mean and the standard deviation
    of the rows before the first added token. The seed depends on the token; the global random state does not change.

    Args:
        model: a transformers causal LM, not yet wrapped by PEFT. Its embeddings grow in place if the new ids need it.
        tokenizer: the model's tokenizer; the tokens are added in place. Save it with the model.
        names: keys of `SPELLINGS`: "mask", "gmask", "sop", "eop", "rev".

    Returns:
        The id of each name, in the given order.

    Raises:
        ValueError: there is no tokenizer, or a name is unknown.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from bico_ext.models.tokenization import train_word_tokenizer
        >>> tokenizer = train_word_tokenizer(["Ada wrote it."])
        >>> config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        ...                      vocab_size=len(tokenizer))
        >>> added_tokens(LlamaForCausalLM(config), tokenizer, ["mask", "sop"])
        {'mask': 8, 'sop': 9}
    """
    if tokenizer is None:
        raise ValueError(
            "tokenizer must be given to add tokens such as [MASK], got None; pass the model's tokenizer as "
            "processing_class"
        )
    ids = _known(tokenizer, names)
    missing = [SPELLINGS[name][0] for name, index in ids.items() if index is None]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    found = token_ids(tokenizer, ids)
    inputs: Any = model.get_input_embeddings()
    rows = len(inputs.weight)  # too few if the tokens were added for another model
    tokens = {str(tokenizer.convert_ids_to_tokens(index)): index for index in found.values()}
    new = {token: index for token, index in tokens.items() if token in missing or index >= rows}
    if new:
        _initialise_rows(model, new)
    return found


def _known(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> dict[str, int | None]:
    """Return the id of each name, or None if the tokenizer has no such token."""
    vocabulary = tokenizer.get_vocab()
    ids: dict[str, int | None] = {}
    for name in names:
        if name not in SPELLINGS:
            raise ValueError(
                f"the name of a special token must be one of {', '.join(map(repr, SPELLINGS))}, got {name!r}"
            )
        ids[name] = next((vocabulary[token] for token in SPELLINGS[name] if token in vocabulary), None)
    return ids


def _initialise_rows(model: PreTrainedModel, added: Mapping[str, int]) -> None:
    """Draw the embedding rows of newly added tokens, from their ids; the embeddings grow if needed."""
    first = min(added.values())
    last = max(added.values())
    inputs: Any = model.get_input_embeddings()
    # Some models have more rows than their tokenizer has tokens. Such an unused row is drawn anew, too.
    if last >= len(inputs.weight):
        with torch.random.fork_rng(devices=[]):
            # The rows are drawn below, because those of transformers (mean_resizing) are nearly equal for all tokens.
            model.resize_token_embeddings(last + 1, mean_resizing=False)
    layers: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    weights: dict[int, Tensor] = {id(layer.weight): layer.weight for layer in layers if layer is not None}
    with torch.no_grad():
        for side, weight in enumerate(weights.values()):
            others = weight[:first].float()
            mean, deviation = others.mean(0), others.std(0)
            for token, index in added.items():
                generator = Generator().manual_seed(stream_seed("added token", token, side))
                noise = torch.randn(mean.shape, generator=generator).to(weight.device)
                weight[index] = (mean + deviation * noise).to(weight.dtype)
