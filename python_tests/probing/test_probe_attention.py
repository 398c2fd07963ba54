"""Attention by distance, against transformers' eager attention and numbers worked out by hand."""

import math

import pytest
import torch
from tiny_models import tiny_family, tiny_llama, tokens
from torch import Tensor

from bico_ext.models.attach import attach
from bico_ext.probing.attention import attention_by_distance, attention_matrix, rotary_distance
from bico_ext.probing.denoising import CONDITIONS

BOS = 1


def sequences(*lengths: int) -> list[Tensor]:
    return [torch.cat((torch.tensor([BOS]), tokens(length - 1))) for length in lengths]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_attention_mass_sums_to_one(condition):
    model = attach(tiny_llama())
    profile = attention_by_distance(model, sequences(5, 11, 8), condition)
    assert profile.mass.shape == (2, 21)
    torch.testing.assert_close(profile.mass.sum(-1), torch.ones(2).double())
    assert profile.distances.tolist() == list(range(-10, 11))
    lengths = (5, 11, 8)
    sides = (-1, 0, 1) if condition != "causal" else (-1, 0)
    expected = [
        sum(max(length - abs(d), 0) for length in lengths) if (d > 0) - (d < 0) in sides else 0 for d in range(-10, 11)
    ]
    assert profile.pairs.tolist() == expected


def test_texts_fit_in_a_sliding_window():
    model = attach(tiny_family("mistral", sliding_window=8))
    attention_by_distance(model, sequences(8), "bico")
    with pytest.raises(ValueError, match=r"sliding window of 8 tokens, so a text of 9 .*; probe shorter texts"):
        attention_by_distance(model, sequences(8, 9), "bico")


def test_causal_attention_has_no_later_keys():
    profile = attention_by_distance(attach(tiny_llama()), sequences(9), "causal")
    later = profile.distances > 0
    assert not profile.mass[:, later].any()
    assert profile.logits[:, later].isnan().all()
    assert profile.mass[:, ~later].all()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_mass_by_distance_is_that_of_transformers_eager_attention(condition):
    """The model has one layer, so its input is the same in every condition; transformers computes the matrices."""
    stock = tiny_llama(num_hidden_layers=1).double()
    (ids,) = sequences(7)
    stock.set_attn_implementation("eager")
    inner = stock.model
    x = inner.layers[0].input_layernorm(inner.embed_tokens(ids[None]))
    cos, sin = inner.rotary_emb(x, torch.arange(7)[None])
    attention = inner.layers[0].self_attn
    everything = torch.zeros(1, 1, 7, 7).double()
    causal = torch.full((7, 7), -math.inf).double().triu(1)[None, None]
    mask = causal if condition == "causal" else everything
    weights = attention(x, position_embeddings=(cos, sin), attention_mask=mask)[1][0]  # [H, m, n]
    if condition == "bico":  # scores of the plus frame up to the diagonal, of the minus frame above it
        scores = weights.log()
        # Each row is known up to a constant. The diagonal, which rotation does not change, aligns the two frames.
        flipped = attention(x, position_embeddings=(cos, -sin), attention_mask=mask)[1][0].log()
        scores, flipped = (s - s.diagonal(dim1=-2, dim2=-1)[..., None] for s in (scores, flipped))
        weights = torch.where(torch.ones(7, 7).tril().bool(), scores, flipped).softmax(-1)
    expected = [weights.mean(0).diagonal(d).sum().item() / 7 for d in range(-6, 7)]
    profile = attention_by_distance(attach(tiny_llama(num_hidden_layers=1).double()), [ids], condition)
    assert profile.mass[0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_layers_are_separate_and_texts_are_weighted_by_their_queries():
    model = attach(tiny_llama())
    both = attention_by_distance(model, sequences(6, 9), "bico")
    short, long = (attention_by_distance(model, [s], "bico") for s in sequences(6, 9))
    padded = torch.nn.functional.pad(short.mass, (3, 3))
    torch.testing.assert_close(both.mass, (6 * padded + 9 * long.mass) / 15)
    assert (both.mass[0] - both.mass[1]).abs().max() > 1e-3


def tables(length: int, speeds: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    angle = torch.outer(torch.arange(float(length)), torch.tensor(speeds)).repeat(1, 2)[None].double()
    return angle.cos(), angle.sin()


def spans(length: int, condition: str) -> Tensor:
    return torch.full((1, length), int(condition == "causal"), dtype=torch.int32)


def test_weights_by_hand():
    """Two tokens, one rotary pair that rotates by 90 degrees per token, scale 1.

    With q = (1, 0) and k = (0, 1), the score at n - m = 0 is 0. The earlier key (n - m = -1) is rotated by -90 degrees
    relative to the query. It then points in the same direction, so its score is 1. The later key is rotated by +90
    degrees and points in the opposite direction, so its score is -1. With flipped sines, its score is 1, too.
    """
    q, k = torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2), torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    cos, sin = tables(2, (math.pi / 2,))
    e = math.e
    for condition, later in (("bico", 1.0), ("naive", -1.0)):
        weights, logits = attention_matrix(
            q, k, cos, sin, span_ids=spans(2, condition), scale=1.0, mirror=condition == "bico"
        )
        torch.testing.assert_close(logits[0, 0], torch.tensor([[0.0, later], [1.0, 0.0]]).double())
        ahead = math.exp(later)
        expected = torch.tensor([[1 / (1 + ahead), ahead / (1 + ahead)], [e / (1 + e), 1 / (1 + e)]])
        torch.testing.assert_close(weights[0, 0], expected.double())


def logits_of_constants(condition: str, q: list[float], k: list[float], length: int = 9) -> Tensor:
    """Return the scores [m, n] for the same q and the same k at every position."""
    q_all, k_all = (torch.tensor(x).expand(1, 1, length, -1) for x in (q, k))
    cos, sin = tables(length, (1.0, 0.3))
    span_ids = spans(length, condition)
    return attention_matrix(q_all, k_all, cos, sin, span_ids=span_ids, scale=None, mirror=condition == "bico")[1][0, 0]


def test_without_content_the_flip_leaves_only_the_absolute_distance():
    q, k = [1.0, 0.5, 0.0, 0.2], [0.0, 0.1, 1.0, -0.7]
    flipped, naive = (logits_of_constants(condition, q, k) for condition in ("bico", "naive"))
    torch.testing.assert_close(flipped, flipped.mT)
    for distance in range(1, 9):
        torch.testing.assert_close(flipped.diagonal(distance), flipped[distance, 0].expand(9 - distance))
        torch.testing.assert_close(naive.diagonal(distance), naive[0, distance].expand(9 - distance))
        assert (naive[0, distance] - naive[distance, 0]).abs() > 1e-2
    torch.testing.assert_close(flipped.tril(), naive.tril())


def test_the_sign_does_not_matter_where_sines_do_not():
    """With q = k, the score is a sum of cosines, which are even functions."""
    same = [1.0, 0.5, 0.3, -0.2]
    torch.testing.assert_close(logits_of_constants("bico", same, same), logits_of_constants("naive", same, same))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_rotary_distance_is_what_the_attention_rotates_by(condition):
    """The angle is read from two scores: with q = k the score is its cosine, with k rotated by 90 degrees its -sine."""
    speed, length = 0.1, 9
    cos, sin = tables(length, (speed,))
    q = torch.tensor([1.0, 0.0]).expand(1, 1, length, 2)
    ahead = torch.tensor([0.0, 1.0]).expand(1, 1, length, 2)
    arguments = {"span_ids": spans(length, condition), "scale": 1.0, "mirror": condition == "bico"}
    cosine, minus_sine = (attention_matrix(q, k, cos, sin, **arguments)[1][0, 0] for k in (q, ahead))
    for m in range(length):
        for n in range(m + 1 if condition == "causal" else length):
            met = math.atan2(-minus_sine[m, n], cosine[m, n]) / speed
            assert rotary_distance(n - m, condition) == pytest.approx(met, abs=1e-6)
