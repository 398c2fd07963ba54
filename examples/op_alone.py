"""Calls the attention op directly and compares output and gradients with the plain-torch reference.

python examples/op_alone.py --length 64
"""

import argparse

import torch

from bico_ext import split_triangle_attention
from bico_ext.ops import reference

BATCH, QUERY_HEADS, KEY_HEADS, HEAD_DIM = 2, 4, 2, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=64, help="tokens in each sequence, at least 8 (default: 64)")
    length = parser.parse_args().length
    torch.manual_seed(0)

    # q and k are not rotated: the op rotates them, differently for earlier and for later keys.
    q = torch.randn(BATCH, QUERY_HEADS, length, HEAD_DIM, requires_grad=True)
    k, v = (torch.randn(BATCH, KEY_HEADS, length, HEAD_DIM, requires_grad=True) for _ in range(2))
    frequencies = 10000.0 ** -torch.arange(0, 1, 2 / HEAD_DIM)  # [D / 2]
    angles = torch.outer(torch.arange(length), frequencies).repeat(1, 2)[None]  # [1, S, D]
    cos, sin = angles.cos(), angles.sin()

    # 0: context, visible to everyone. -1: hidden from everyone. 1: a span that sees the context and its own past.
    span_ids = torch.zeros(BATCH, length, dtype=torch.int32)
    span_ids[:, 2] = -1
    span_ids[:, length // 2 :] = 1

    out = split_triangle_attention(q, k, v, cos, sin, span_ids=span_ids)  # [B, Hq, S, D]
    direction = torch.randn_like(out)
    gradients = torch.autograd.grad(out, (q, k, v), direction)

    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = reference.split_triangle_attention(*exact, cos, sin, span_ids=span_ids)
    expected_gradients = torch.autograd.grad(expected, exact, direction.double())

    print(f"output: {list(out.shape)}, {out.dtype}")
    names = ("output", "gradient of q", "gradient of k", "gradient of v")
    for name, ours, theirs in zip(names, (out, *gradients), (expected, *expected_gradients), strict=True):
        error = ((ours - theirs).norm() / theirs.norm()).item()
        print(f"{name}: relative error against the float64 reference {error:.1e}")


if __name__ == "__main__":
    main()
