"""Each head's attention to nearby tokens, against transformers' own rotation in loops over heads and tokens."""

import pytest
import torch
from tiny_models import tiny_llama, tokens
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from bico_ext.models.attach import attach
from bico_ext.probing.heads import SIDES, heads_by_distance

REACH, LENGTH = 2, 9


def scores(flipped: bool) -> Tensor:
    """Return the first layer's scaled scores of all pairs in one frame, [H, m, n], from transformers' own functions."""
    model = tiny_llama().double()
    inner, ids = model.model, tokens(LENGTH)[None]
    layer = inner.layers[0]
    x = layer.input_layernorm(inner.embed_tokens(ids))
    q = layer.self_attn.q_proj(x).view(LENGTH, 4, 16).transpose(0, 1)
    k = layer.self_attn.k_proj(x).view(LENGTH, 2, 16).transpose(0, 1)
    cos, sin = inner.rotary_emb(x, torch.arange(LENGTH)[None])
    q, k = apply_rotary_pos_emb(q[None], k[None], cos, -sin if flipped else sin)
    return (q[0] @ k[0].repeat_interleave(2, dim=0).mT / 4).detach()


def test_shares_and_logits_are_those_of_transformers():
    measured = heads_by_distance(attach(tiny_llama().double()), [tokens(LENGTH)], reach=REACH)
    queries = range(1 + REACH, LENGTH - REACH)
    assert measured["queries"] == len(queries)
    plus, minus = scores(False), scores(True)
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    seen = {"causal": plus.masked_fill(later, -torch.inf), "flip": minus.where(later, plus), "naive": plus}
    for side in SIDES:
        frame, sign = side.split(": ")[0], -1 if "past" in side else 1
        for head in range(4):
            for d in range(1, REACH + 1):
                share = sum(seen[frame][head, m].softmax(-1)[m + sign * d] for m in queries) / len(queries)
                logit = sum(seen[frame][head, m, m + sign * d] for m in queries) / len(queries)
                assert measured["mass"][side][0][head][d - 1] == pytest.approx(share.item(), rel=1e-6)
                assert measured["logit"][side][0][head][d - 1] == pytest.approx(logit.item(), rel=1e-6)


def test_texts_are_weighted_by_their_queries_and_short_ones_left_out():
    model = attach(tiny_llama())
    texts = [tokens(length) for length in (5, 7, 12)]
    both, short, long = (heads_by_distance(model, chosen, reach=REACH) for chosen in (texts, texts[1:2], texts[2:]))
    assert [x["queries"] for x in (both, short, long)] == [9, 2, 7]
    for side in SIDES:
        mean = (2 * torch.tensor(short["mass"][side]) + 7 * torch.tensor(long["mass"][side])) / 9
        torch.testing.assert_close(torch.tensor(both["mass"][side]), mean)


def test_texts_that_are_too_short_are_named():
    with pytest.raises(ValueError, match="at least 6 tokens for a reach of 2, got at most 5; name longer texts"):
        heads_by_distance(attach(tiny_llama()), [tokens(5)], reach=REACH)
