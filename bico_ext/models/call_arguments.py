"""The keyword arguments of a call of an attached model: which have an effect, and what was meant by others.

transformers' models take any keyword arguments and pass them on, down to the attention function, which ignores those
that it does not know. So a misspelt `span_ids` would leave attention causal, and nothing would be said.
"""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils.generic import TransformersKwargs

OWN = ("span_ids", "mirror", "block_positions", "output_positions", "span_cache")  # those that `attach` adds

# Names that other libraries give to what `cu_seq_lens_q` says here.
_OTHER_NAMES_OF_PACKS = frozenset(
    (
        *("cu_seqlens", "cu_seq_lens", "cu_seqlens_q", "cu_seqlens_k"),
        *("segment_ids", "sequence_ids", "seq_ids", "document_ids", "doc_ids"),
    )
)
# What comes with packed sequences beside `cu_seq_lens_q`, and does not separate them with span ids.
_BESIDE_PACKS = ("cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


def known_arguments(model: nn.Module) -> frozenset[str]:
    """Return the keyword arguments that have an effect in a call of an attached model.

    They are those of `attach`, of transformers (`cu_seq_lens_q`, say, and those of the loss), and those that any module
    of the model takes by name.

    Example:
        >>> "cu_seq_lens_q" in known_arguments(nn.Identity())
        True
    """
    forwards: list[Any] = list({type(module).forward for module in model.modules()})
    by_name = {name for function in (*forwards, ForCausalLMLoss) for name in inspect.signature(function).parameters}
    return frozenset(by_name | set(TransformersKwargs.__annotations__) | {*OWN, "attach_proof"})


def check_call_arguments(kwargs: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raise an error for keyword arguments that would be ignored although the result depends on what they say.

    A call without `span_ids` is stock in all else, so it may have arguments that are known to nobody, unless one looks
    like an argument of `attach` or says in other words where packed sequences end. None is always accepted.

    Args:
        kwargs: the arguments of the call.
        known: what `known_arguments` returns for the model.

    Raises:
        TypeError: an argument is unknown.
        ValueError: an argument has no effect together with `span_ids`.

    Example:
        >>> check_call_arguments({"span_id": 0}, known_arguments(nn.Identity()))
        Traceback (most recent call last):
        TypeError: span_id is no argument of an attached model; use span_ids
    """
    has_spans = kwargs.get("span_ids") is not None
    for name, value in kwargs.items():
        if value is None or name in known:
            continue
        if name in _OTHER_NAMES_OF_PACKS:
            raise TypeError(
                f"{name} is no argument of an attached model; packed sequences are separated by cu_seq_lens_q, int32 "
                "[N + 1], with span_ids"
            )
        if meant := difflib.get_close_matches(name, OWN, 1, cutoff=0.75):
            raise TypeError(f"{name} is no argument of an attached model; use {meant[0]}")
        if has_spans:
            raise TypeError(f"{name} is no argument of an attached model, so it would have no effect; leave it out")
    if not has_spans:
        return
    if kwargs.get("is_causal") is not None:
        raise ValueError(
            "is_causal has no effect together with span_ids, which say who sees whom (0 is context, which is read in "
            "both directions); leave it out"
        )
    if kwargs.get("cu_seq_lens_q") is None:
        for name in _BESIDE_PACKS:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} does not separate packed sequences without cu_seq_lens_q, int32 [N + 1]; give it, too"
                )
