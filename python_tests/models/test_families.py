"""Every family of docs/families.md against a dense definition in fp64, and the page against the models."""

from typing import Any

import pytest
import torch
from families import ATTACHED, HYBRID, PAGE, REFUSED, dense_logits, known, page, small
from tiny_models import LENGTH, relative, some_span_ids, tokens
from transformers import AutoConfig

from bico_ext.models.attach import attach, check_attached, detach
from bico_ext.models.span_cache import SpanCache


def installed(*families: str) -> list[Any]:
    """The families as parameters; those that the installed transformers lacks are skipped."""
    return [
        pytest.param(family, marks=pytest.mark.skipif(not known(family), reason="this transformers lacks it"))
        for family in families
    ]


@pytest.mark.parametrize("family", installed(*ATTACHED, *HYBRID))
@torch.no_grad()
def test_logits_match_the_dense_definition(family: str) -> None:
    """In fp32, to 1e-5. Without span ids the logits are bit-equal to the stock model's."""
    model = small(family)
    ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    stock, dense = model(input_ids=ids).logits, dense_logits(model, ids, span_ids)
    attach(model, allow_causal_layers=family in HYBRID)
    check_attached(model)
    assert torch.equal(model(input_ids=ids).logits, stock)
    assert relative(model(input_ids=ids, span_ids=span_ids).logits, dense) < 1e-5
    assert relative(model(input_ids=ids, span_ids=span_ids, mirror=False).logits, dense) > 1e-3


@pytest.mark.parametrize("family", installed(*HYBRID))
def test_layers_that_stay_causal_must_be_accepted(family: str) -> None:
    with pytest.raises(TypeError, match="allow_causal_layers=True"):
        attach(small(family))


@pytest.mark.parametrize("arguments", [{"cu_seq_lens_q": torch.tensor([0, 9, 19])}, {"span_cache": SpanCache(9)}])
def test_layers_that_stay_causal_take_no_packs_and_no_span_cache(arguments: dict) -> None:
    """A convolution would run across the borders of packed sequences, and has no state in the cache."""
    model = attach(small("lfm2"), allow_causal_layers=True)
    with pytest.raises(
        ValueError, match=rf"has layers that carry .* without attention .* take {next(iter(arguments))}"
    ):
        model(input_ids=tokens(1, LENGTH), span_ids=some_span_ids(1), **arguments)


@pytest.mark.parametrize("family", installed(*REFUSED))
def test_refused_families_name_the_reason(family: str) -> None:
    model = small(family)
    stock, implementation = model(input_ids=tokens(2, LENGTH)).logits, model.config._attn_implementation
    with pytest.raises(TypeError, match=REFUSED[family].message):
        attach(model)
    assert model.config._attn_implementation == implementation
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(input_ids=tokens(2, LENGTH)).logits, stock)
    with pytest.raises(RuntimeError, match="not attached"):
        check_attached(model)


WITH_WINDOW = [f for f in ATTACHED if known(f) and hasattr(AutoConfig.for_model(f), "sliding_window")]


@pytest.mark.parametrize("family", WITH_WINDOW)
@torch.no_grad()
def test_windows_hide_keys_on_both_sides(family: str) -> None:
    """Causal span ids give the stock model, and context the dense definition, beyond a window that the proof lacks.

    Where a configuration knows kinds of layers, every second layer has the window.
    """
    default = AutoConfig.for_model(family)
    settings: dict[str, Any] = {"use_sliding_window": True} if hasattr(default, "use_sliding_window") else {}
    if getattr(default, "layer_types", None):
        settings["layer_types"] = ["sliding_attention", "full_attention"] * 2
    model, wide = (small(family, sliding_window=window, **settings) for window in (40, 64))
    ids, ones, span_ids = tokens(1, 60), torch.ones(1, 60, dtype=torch.int32), some_span_ids(1, 60)
    stock = model(input_ids=ids).logits
    dense = dense_logits(model, ids, span_ids)
    assert relative(stock, wide(input_ids=ids).logits) > 1e-2, "no layer has the window"
    assert relative(dense, dense_logits(wide, ids, span_ids)) > 1e-2
    attach(model)
    assert relative(model(input_ids=ids, span_ids=ones).logits, stock) < 1e-5
    assert relative(model(input_ids=ids, span_ids=span_ids).logits, dense) < 1e-5


@torch.no_grad()
def test_packed_sequences_have_windows_of_their_own() -> None:
    model = attach(small("mistral", sliding_window=8))
    ids, span_ids = tokens(1, 40), torch.zeros(1, 40, dtype=torch.int32)
    position_ids = torch.cat((torch.arange(25), torch.arange(15)))[None]
    offsets = torch.tensor([0, 25, 40], dtype=torch.int32)
    packed = model(input_ids=ids, span_ids=span_ids, position_ids=position_ids, cu_seq_lens_q=offsets).logits
    for begin, end in (0, 25), (25, 40):
        alone = model(input_ids=ids[:, begin:end], span_ids=span_ids[:, begin:end]).logits
        assert relative(packed[:, begin:end], alone) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_convolution_is_found(dtype: torch.dtype) -> None:
    """It mixes neighbouring tokens in one MLP, where the count of attention modules does not show it."""
    model = small("llama").to(dtype)
    attach(model)
    detach(model)
    mlp = model.model.layers[2].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(0.5 * x + 0.5 * x.roll(1, dims=1))
    with pytest.raises(TypeError, match=r"mixes tokens in layer 2 by something other than attention .* stay causal"):
        attach(model)
    attach(model, allow_causal_layers=True)
    check_attached(model)


def test_layers_without_positions_have_no_frames() -> None:
    """SmolLM3 rotates in three of four layers; here it rotates in none, so the order of the context has no effect."""
    model = attach(small("smollm3", no_rope_layers=[0, 0, 0, 0]))
    ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    plain, mirrored = (model(input_ids=ids, span_ids=span_ids, mirror=mirror).logits for mirror in (False, True))
    assert torch.equal(plain, mirrored)
    order = torch.arange(LENGTH - 1, -1, -1)
    context = torch.zeros_like(span_ids)
    reversed_logits = model(input_ids=ids[:, order], span_ids=context).logits[:, order]
    assert relative(reversed_logits, model(input_ids=ids, span_ids=context).logits) < 1e-5


def test_the_page_is_current() -> None:
    missing = [family for family in (*ATTACHED, *HYBRID, *REFUSED) if not known(family)]
    if missing:
        pytest.skip(f"this transformers lacks {', '.join(missing)}")
    assert PAGE.read_text(encoding="utf-8") == page(), "run python python_tests/models/families.py"
