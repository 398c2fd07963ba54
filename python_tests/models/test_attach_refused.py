"""Objects and calls that `attach` refuses, with their messages; test_families.py has the families."""

import pytest
import torch
from tiny_models import LENGTH, some_span_ids, tiny_llama, tokens
from torch import nn
from transformers import LlamaForCausalLM

from bico_ext.models.attach import attach, check_attached


def test_anything_but_a_transformers_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a transformers PreTrainedModel .* got Linear"):
        attach(nn.Linear(2, 2))
    with torch.device("meta"):
        on_meta = LlamaForCausalLM(tiny_llama().config)
    with pytest.raises(TypeError, match="LlamaForCausalLM is on the meta device"):
        attach(on_meta)


def test_a_layer_unhooked_later_is_named() -> None:
    model = attach(tiny_llama())
    model.model.layers[1].self_attn._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match="LlamaAttention got span_ids but lacks the hook of attach"):
        check_attached(model)


def test_changed_implementation_is_noticed() -> None:
    """Otherwise the hooks would pass un-rotated q and k to the other implementation."""
    model = attach(tiny_llama())
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="implementation 'bico', which attach had set, but it is now 'sdpa'"):
        check_attached(model)
    with pytest.raises(RuntimeError, match="it is now 'sdpa'"):
        model(input_ids=tokens(1, LENGTH), span_ids=some_span_ids(1))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (
            {"span_ids": torch.zeros(2, LENGTH, dtype=torch.int64)},
            ValueError,
            r"int32 \[B, S\] = \[2, 19\], got int64 \[2, 19\]; use span_ids.int\(\)$",
        ),
        ({"span_ids": some_span_ids(1)}, ValueError, r"int32 \[B, S\] = \[2, 19\], got int32 \[1, 19\]$"),
        ({"span_ids": some_span_ids(2)[0]}, ValueError, r"int32 \[B, S\] = \[2, 19\], got int32 \[19\]$"),
        ({"attention_mask": torch.ones(2, LENGTH)}, ValueError, "mark padding with -1 in span_ids"),
        ({"output_attentions": True}, ValueError, "output_attentions is not available with span_ids"),
    ],
    ids=["int64", "batch", "no-batch", "attention_mask", "output_attentions"],
)
def test_call_errors(inputs: dict, error: type[Exception], message: str) -> None:
    model = attach(tiny_llama())
    with pytest.raises(error, match=message):
        model(**({"input_ids": tokens(2, LENGTH), "span_ids": some_span_ids(2)} | inputs))


@pytest.mark.parametrize("packed", [False, True], ids=["without-spans", "with-spans"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("span_id", "use span_ids"),
        ("spanids", "use span_ids"),
        ("output_position", "use output_positions"),
        ("cu_seqlens", "packed sequences are separated by cu_seq_lens_q"),
        ("segment_ids", "packed sequences are separated by cu_seq_lens_q"),
    ],
)
def test_a_misspelt_or_foreign_argument_is_named(name: str, meant: str, packed: bool) -> None:
    """transformers swallows it, so attention would be causal, or packed sequences would see each other."""
    model, inputs = attach(tiny_llama()), {"span_ids": some_span_ids(1)} if packed else {}
    with pytest.raises(TypeError, match=f"^{name} is no argument of an attached model; {meant}"):
        model(input_ids=tokens(1, LENGTH), **inputs, **{name: torch.zeros(1, LENGTH, dtype=torch.int32)})


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_call_without_span_ids_may_have_arguments_that_stock_models_ignore(bidirectional: bool) -> None:
    """Some tokenizers return `token_type_ids`, say."""
    model, ids = attach(tiny_llama(), bidirectional=bidirectional), tokens(1, LENGTH)
    extra = {"token_type_ids": torch.zeros_like(ids)}
    assert torch.equal(model(input_ids=ids, **extra).logits, model(input_ids=ids).logits)
    with pytest.raises(TypeError, match=r"^token_type_ids is no argument .* would have no effect; leave it out"):
        model(input_ids=ids, span_ids=some_span_ids(1), **extra)


def test_arguments_of_transformers_are_known() -> None:
    """What a collator without padding and the Trainer's loss give; the same without the lengths leaks."""
    model, offsets = attach(tiny_llama()), torch.tensor([0, 9, LENGTH], dtype=torch.int32)
    lengths = {"cu_seq_lens_k": offsets, "max_length_q": 10, "max_length_k": 10, "seq_idx": tokens(1, LENGTH)}
    inputs = {"input_ids": tokens(1, LENGTH), "labels": tokens(1, LENGTH), "span_ids": some_span_ids(1), **lengths}
    model(**inputs, cu_seq_lens_q=offsets, num_items_in_batch=torch.tensor(18), shift_labels=None, unheard_of=None)
    for name, value in lengths.items():
        with pytest.raises(ValueError, match=f"{name} does not separate packed sequences without cu_seq_lens_q"):
            model(input_ids=inputs["input_ids"], span_ids=inputs["span_ids"], **{name: value})
    with pytest.raises(ValueError, match="is_causal has no effect together with span_ids"):
        model(input_ids=inputs["input_ids"], span_ids=inputs["span_ids"], is_causal=False)


def test_a_given_cache_is_refused() -> None:
    model = attach(tiny_llama())
    cache = model(input_ids=tokens(2, LENGTH)).past_key_values
    with pytest.raises(ValueError, match=r"(past_key_values|cache) cannot be given together with span_ids"):
        model(input_ids=tokens(2, LENGTH), span_ids=some_span_ids(2), past_key_values=cache)
    with pytest.raises(ValueError, match=r"not used by the model: .'span_ids'."):  # transformers' own message
        model.generate(tokens(2, LENGTH), span_ids=some_span_ids(2), max_new_tokens=2)


def test_attention_dropout_is_refused_in_training_only() -> None:
    model = attach(tiny_llama(attention_dropout=0.1))
    model(input_ids=tokens(2, LENGTH), span_ids=some_span_ids(2))
    model.train()
    model(input_ids=tokens(2, LENGTH))
    with pytest.raises(ValueError, match=r"LlamaAttention asks for attention dropout 0\.1"):
        model(input_ids=tokens(2, LENGTH), span_ids=some_span_ids(2))
