"""`attach(model, bidirectional=True)`: calls without span ids read whole texts, as encoders do."""

import pytest
import torch
from tiny_models import LENGTH, relative, some_span_ids, tiny_llama, tokens

from bico_ext.models.attach import attach, check_attached, detach

IDS = tokens(2, LENGTH)
MASK = torch.ones(2, LENGTH, dtype=torch.int64)
MASK[0, :4] = 0  # left padding
MASK[1, -5:] = 0  # right padding


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_plain_calls_are_those_with_context_everywhere(mirror: bool, padded: bool) -> None:
    """The reference is a model attached in the usual way, which its own tests hold against a dense Llama."""
    model, usual = attach(tiny_llama(), bidirectional=True, mirror=mirror), attach(tiny_llama())
    mask = {"attention_mask": MASK} if padded else {}
    span_ids = (MASK - 1 if padded else torch.zeros_like(IDS)).int()
    expected = usual(input_ids=IDS, span_ids=span_ids, mirror=mirror).logits
    assert torch.equal(model(input_ids=IDS, **mask).logits, expected)
    assert torch.equal(model(IDS, **mask).logits, expected)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(IDS), **mask).logits, expected)
    assert relative(model(input_ids=IDS, mirror=not mirror, **mask).logits, expected) > 1e-3
    assert relative(usual(input_ids=IDS, **mask).logits, expected) > 1e-3
    check_attached(model)


def test_embeddings_do_not_depend_on_the_padding() -> None:
    model = attach(tiny_llama(), bidirectional=True)
    hidden = model.model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    for row in range(2):
        real = MASK[row].bool()
        alone = model.model(input_ids=IDS[row, real][None]).last_hidden_state[0]
        assert relative(hidden[row, real], alone) < 1e-6


def test_calls_with_span_ids_do_not_change() -> None:
    model, usual = attach(tiny_llama(), bidirectional=True, mirror=False), attach(tiny_llama())
    inputs = {"input_ids": IDS, "span_ids": some_span_ids(2)}
    assert torch.equal(model(**inputs).logits, usual(**inputs).logits)
    stock = tiny_llama()
    assert torch.equal(detach(model)(input_ids=IDS).logits, stock(input_ids=IDS).logits)


def test_it_cannot_generate() -> None:
    model = attach(tiny_llama(), bidirectional=True)
    with pytest.raises(ValueError, match=r"attached with bidirectional=True, .* has no KV cache; to generate"):
        model.generate(IDS, max_new_tokens=2, do_sample=False)


def test_an_attached_model_does_not_become_an_encoder_silently() -> None:
    """It once came back as it was, and its embeddings were causal."""
    model = attach(tiny_llama())
    with pytest.raises(
        ValueError, match=r"already attached with bidirectional=False, mirror=True; detach\(model\) first"
    ):
        attach(model, bidirectional=True)
    encoder = attach(detach(model), bidirectional=True, mirror=False)
    assert attach(encoder) is encoder
    assert attach(encoder, bidirectional=True, mirror=False) is encoder
    with pytest.raises(ValueError, match="already attached with bidirectional=True, mirror=False"):
        attach(encoder, bidirectional=True)


def test_errors() -> None:
    with pytest.raises(ValueError, match="mirror=False needs bidirectional=True"):
        attach(tiny_llama(), mirror=False)
    model = attach(tiny_llama(), bidirectional=True)
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, S\] = \[2, 19\], got \[2, 1, 19, 19\]"):
        model(input_ids=IDS, attention_mask=torch.ones(2, 1, LENGTH, LENGTH))
