"""The reference against the paper's formula, written out pair by pair with complex numbers."""

import cmath
import itertools
import math

import pytest
import torch

from bico_ext.ops import arguments, reference
from bico_ext.ops.reference import CAUSAL_CONTEXT


def sees(span_m, span_n, m, n, window=None):
    """Query m sees key n: the rules as sentences."""
    if window is not None and abs(m - n) >= window:
        return False
    if span_n in (0, CAUSAL_CONTEXT):
        looks_ahead = span_m != CAUSAL_CONTEXT
        return n <= m or looks_ahead
    return span_n > 0 and span_n == span_m and n <= m


def explicit(q, k, v, frequencies, span_ids, window, mirror, interleaved, scale):
    """Compute one head [S, D], one pair at a time: each pair is rotated by the angle frequency * -|m - n|."""
    length, head_dim = len(q), len(q[0])
    half = len(frequencies)
    out, lse = [], []
    for m in range(length):
        scores = {}
        for n in range(length):
            s_m, s_n = span_ids[m], span_ids[n]
            if not sees(s_m, s_n, m, n, window):
                continue
            distance = -abs(m - n) if mirror else n - m
            score = sum(q[m][i] * k[n][i] for i in range(2 * half, head_dim))
            for i, frequency in enumerate(frequencies):
                a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                rotated = complex(k[n][a], k[n][b]) * cmath.exp(1j * frequency * distance)
                score += (complex(q[m][a], q[m][b]).conjugate() * rotated).real
            scores[n] = score * scale
        norm = sum(math.exp(s) for s in scores.values())
        lse.append(math.log(norm) if scores else -math.inf)
        out.append([sum(math.exp(s) / norm * v[n][d] for n, s in scores.items()) for d in range(head_dim)])
    return torch.tensor(out, dtype=torch.float64), torch.tensor(lse, dtype=torch.float64)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(
    "spans",
    [
        [0] * 7,
        [1] * 7,
        [0, 0, 1, 1, -1, 0, 2],
        [-1] * 7,
        [2, 1, 1, 2, 2, 0, -1],
        [CAUSAL_CONTEXT, 0, 1, 1, CAUSAL_CONTEXT, 0, -1],
    ],
)
def test_split_triangle_is_rotation_by_minus_the_distance(mirror, interleaved, window, spans):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 7, 6, dtype=torch.float64)
    frequencies = [0.9, 0.2]  # R = 4 of D = 6
    angle = torch.outer(torch.arange(7).double(), torch.tensor(frequencies, dtype=torch.float64))
    angle = (angle.repeat_interleave(2, -1) if interleaved else angle.repeat(1, 2))[None]
    got, got_lse = reference.split_triangle_attention(
        *(x[None, None] for x in (q, k, v)),
        angle.cos(),
        angle.sin(),
        span_ids=torch.tensor([spans], dtype=torch.int32),
        window=window,
        mirror=mirror,
        interleaved=interleaved,
        scale=0.7,
        return_lse=True,
    )
    want, want_lse = explicit(q.tolist(), k.tolist(), v.tolist(), frequencies, spans, window, mirror, interleaved, 0.7)
    torch.testing.assert_close(got[0, 0], want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got_lse[0, 0], want_lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 2, 4])
def test_visible_pair_by_pair(window):
    assert torch.iinfo(torch.int32).max == CAUSAL_CONTEXT
    rows = list(itertools.product((-1, 0, 1, 2, CAUSAL_CONTEXT), repeat=4))
    seen = reference.visible(torch.tensor(rows, dtype=torch.int32), window)
    want = [[[sees(row[m], row[n], m, n, window) for n in range(4)] for m in range(4)] for row in rows]
    assert seen.tolist() == want


def test_the_rule_of_the_other_backends_is_the_same():
    """`portable` and `flex` call it with ids and order as they have them; all pairs of ids here, before and after."""
    ids = (-1, 0, 1, 2, CAUSAL_CONTEXT)
    pairs = [(span_m, span_n, past) for span_m, span_n in itertools.product(ids, ids) for past in (True, False)]
    m_span, n_span, past = (torch.tensor(column) for column in zip(*pairs, strict=True))
    want = [sees(span_m, span_n, int(past), 1 - past) for span_m, span_n, past in pairs]
    assert arguments.visible(m_span, n_span, past).tolist() == want
    assert arguments.is_context(torch.tensor(ids)).tolist() == [False, True, False, False, True]


def test_heads_are_grouped_and_scores_scaled_as_in_torch():
    """With nothing to rotate and everything visible, it is torch's attention with its default scale."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 4, dtype=torch.float64, generator=generator) for heads in (6, 2, 2))
    got = reference.split_triangle_attention(q, k, v, torch.ones(1, 5, 4), torch.zeros(1, 5, 4))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_packed_sequences_are_separate():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 9, 4, dtype=torch.float64)
    angle = torch.rand(1, 9, 2, dtype=torch.float64).repeat(1, 1, 2)
    offsets = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    packed = reference.split_triangle_attention(q, k, v, angle.cos(), angle.sin(), cu_seqlens=offsets)
    for begin, end in [(0, 4), (4, 9)]:
        alone = reference.split_triangle_attention(
            *(x[:, :, begin:end] for x in (q, k, v)), angle[:, begin:end].cos(), angle[:, begin:end].sin()
        )
        torch.testing.assert_close(packed[:, :, begin:end], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"span_ids": torch.tensor([[0, 1, 1, -1, 0]], dtype=torch.int32)},
        {"span_ids": torch.full((1, 5), -1, dtype=torch.int32)},
        {"cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32), "window": 2},
    ],
    ids=["context", "spans", "blind", "packed-window"],
)
def test_transforms_of_torch_go_through_it(options):
    """The way out that the op names where it refuses them: judged by differences of its results."""
    torch.manual_seed(0)
    q, k, v, step = torch.randn(4, 1, 2, 5, 4, dtype=torch.float64)
    angle = torch.rand(1, 5, 2, dtype=torch.float64).repeat(1, 1, 2)

    def f(q):
        return reference.split_triangle_attention(q, k, v, angle.cos(), angle.sin(), **options)

    want = (f(q + 1e-6 * step) - f(q - 1e-6 * step)) / 2e-6
    by_batch = torch.vmap(torch.func.grad(lambda q: f(q[None]).sum()))(torch.cat([q, step]))
    close = {"rtol": 1e-6, "atol": 1e-8}
    torch.testing.assert_close(torch.func.jvp(f, (q,), (step,))[1], want, **close)
    torch.testing.assert_close((torch.func.jacfwd(f)(q) * step).sum((-1, -2, -3, -4)), want, **close)
    torch.testing.assert_close((torch.func.jacrev(f)(q) * step).sum((-1, -2, -3, -4)), want, **close)
    torch.testing.assert_close((by_batch[0] * step[0]).sum(), want.sum(), **close)
