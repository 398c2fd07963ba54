"""The backend `portable`: split-triangle attention in plain torch, on any device that torch has.

Heads are taken in groups and queries in blocks, so that a block has about `MOST_SCORES` scores. They exist only while
it is worked on, and the backward computes them again from the log-sum-exps, so memory is O(S). A block needs both
rotary frames only where the diagonal crosses it: earlier keys are scored in the plus frame, later ones in the minus
frame.

The backward is written in differentiable torch as well, so second derivatives exist.

On a CPU the passes over the scores take more time than the products. So scores are converted to float32 once and then
changed in place: with a million of them, that and a difference take 0.27 ms, a difference of mixed dtypes 0.42 ms.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from bico_ext.ops import transforms
from bico_ext.ops.arguments import check_offsets, empty_heads, has_autocast, is_context, statistics_dtype, visible
from bico_ext.ops.rotary import Rotation

MOST_SCORES = 2**21  # 8 MiB in float32
AMX_ROW = 32  # elements of 16 bits in a row of a tile register
QUERY_BLOCKS = 16, 256  # the fewest and the most queries in a block, unless there are fewer


def attention(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return out and lse; the arguments are those of `backends.Backend.attention`, already checked."""
    return _Attention.apply(*_distinct(arguments))


def _distinct(arguments: tuple[Any, ...]) -> list[Any]:
    """Replace a tensor that was given before by a view: torch.compile refuses it in the place of another argument."""
    distinct: list[Any] = []
    for x in arguments:
        repeated = isinstance(x, Tensor) and any(x is other for other in distinct)
        distinct.append(x.view_as(x) if repeated else x)
    return distinct


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        out = empty_heads(q)
        lse = q.new_empty(q.shape[:3], dtype=statistics_dtype(q))
        reach = _Reach.read(q, *rest[2:4])
        with without_autocast(q):
            for queries, keys in _groups_of_heads(q, k):
                heads = _Heads(reach, q[:, queries], k[:, keys], v[:, keys], *rest)
                heads.forward(out[:, queries], lse[:, queries])
        tensors, ctx.settings = rest[:4], rest[4:]
        ctx.save_for_backward(q, k, v, *tensors, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        transforms.refuse(transforms.OTHERS, *grads)
        q, k, v, *rest, out, lse = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
        reach = _Reach.read(q, *rest[2:4])
        with without_autocast(q):
            for queries, keys in _groups_of_heads(q, k):
                heads = _Heads(reach, q[:, queries], k[:, keys], v[:, keys], *rest, *ctx.settings)
                of_heads = heads.backward(*(x[:, queries] for x in (out, lse, *grads)))
                grad_q[:, queries], grad_k[:, keys], grad_v[:, keys] = of_heads
        return grad_q, grad_k, grad_v, *[None] * 8


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    device = x.device.type
    return torch.autocast(device, enabled=False) if has_autocast(device) else nullcontext()


def _groups_of_heads(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of the heads of q and of the heads of k that belong together."""
    batch, query_heads, length, _ = q.shape
    heads = k.shape[1]
    group = query_heads // heads
    at_once = max(1, MOST_SCORES // max(1, batch * group * min(QUERY_BLOCKS[1], length) * length))
    for first in range(0, heads, at_once):
        last = min(first + at_once, heads)
        yield slice(first * group, last * group), slice(first, last)


@dataclass(frozen=True)
class _Reach:
    """Which keys a block need not look at: those of other sequences, and, after its queries, those that are no context.

    Attributes:
        offsets: where sequences begin and end.
        last_context: the last position that is context in some batch entry.
    """

    offsets: list[int]
    last_context: int

    @classmethod
    def read(cls, q: Tensor, span_ids: Tensor | None, cu_seqlens: Tensor | None) -> "_Reach":
        """Read them from the values, which a trace does not have: there, every key is looked at."""
        length = q.shape[2]
        offsets, last_context = [0, length], length - 1
        if q.device.type == "meta" or torch.compiler.is_compiling() or isinstance(q, FakeTensor):
            return cls(offsets, last_context)
        if cu_seqlens is not None:
            offsets = cu_seqlens.tolist()
            check_offsets(offsets, length)
        if span_ids is not None and length:
            position = torch.arange(length, device=q.device)
            last_context = int(torch.where(is_context(span_ids).any(0), position, -1).max())
        return cls(offsets, last_context)


@dataclass(frozen=True)
class _Block:
    """The queries [begin, end) and the keys [first, last) that some of them may see.

    Attributes:
        seen: bool [B, end - begin, last - first], or None if every query sees every key.
        hidden: the opposite of `seen`, for all heads: bool [B, 1, 1, end - begin, last - first].
        later: bool [end - begin, end - begin], which keys of the diagonal come after which queries.
    """

    begin: int
    end: int
    first: int
    last: int
    seen: Tensor | None
    hidden: Tensor | None
    later: Tensor


class _Heads:
    """Some heads of a call with their rotated operands, all [B, Hkv, G, S, D]: G query heads share a head of k and v.

    The scale is multiplied into q before it is rounded to its dtype, so that scores overflow later in float16.
    """

    def __init__(
        self,
        reach: _Reach,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        span_ids: Tensor | None,
        cu_seqlens: Tensor | None,
        window: int | None,
        scale: float,
        mirror: bool,
        interleaved: bool,
    ) -> None:
        self.reach, self.heads, self.dtype, self.wide = reach, k.shape[1], q.dtype, statistics_dtype(q)
        self.scale, self.mirror = scale, mirror
        cos, sin = (x.to(self.wide)[:, None, None] for x in (cos, sin))  # [1 or B, 1, 1, S, R]
        self.rotation = Rotation(cos, sin, interleaved, mirror)
        self.span_ids, self.cu_seqlens, self.window = span_ids, cu_seqlens, window
        wide_q, wide_k = self.grouped(q.to(self.wide) * scale), self.grouped(k.to(self.wide))
        # By frame: the plus frame is for pairs with n <= m, the minus frame for the others.
        self.q, self.k = ([x.to(self.dtype) for x in self.rotation.frames(wide)] for wide in (wide_q, wide_k))
        self.v = self.grouped(v).contiguous()

    def grouped(self, x: Tensor) -> Tensor:
        """[B, heads, ...] -> [B, Hkv, G, ...]."""
        return x.unflatten(1, (self.heads, x.shape[1] // self.heads))

    def blocks(self) -> Iterator[_Block]:
        batch, heads, group, length, _ = self.q[0].shape
        position = torch.arange(length, device=self.v.device)
        sequence = None
        if self.cu_seqlens is not None:
            sequence = torch.searchsorted(self.cu_seqlens.long(), position, right=True)
        fewest, most = QUERY_BLOCKS
        rows = min(most, max(fewest, MOST_SCORES // max(1, batch * heads * group * length)))
        for begin in range(0, length, rows):
            end = min(begin + rows, length)
            first = max(offset for offset in self.reach.offsets if offset <= begin)
            last = min(offset for offset in self.reach.offsets if offset >= end)
            last = min(last, max(end, self.reach.last_context + 1))  # after a query, only context is visible
            if self.window is not None:
                first, last = max(first, begin - self.window + 1), min(last, end - 1 + self.window)
            m, n = slice(begin, end), slice(first, last)
            later = position[None, m] > position[m, None]
            seen = None
            if self.window is not None and max(end - first, last - begin) > self.window:
                seen = ((position[None, n] - position[m, None]).abs() < self.window).expand(batch, -1, -1)
            if self.span_ids is not None:
                m_span, n_span = self.span_ids[:, m, None], self.span_ids[:, None, n]
                past = position[None, n] <= position[m, None]
                seen = _both(seen, visible(m_span, n_span, past))
            if sequence is not None:
                together = (sequence[None, m, None] == sequence[None, None, n]).expand(batch, -1, -1)
                seen = _both(seen, together)
            hidden = None if seen is None else ~seen[:, None, None]
            yield _Block(begin, end, first, last, seen, hidden, later)

    def scores(self, block: _Block) -> Tensor:
        """Return the scores of a block in `wide`, each pair in its frame: [B, Hkv, G, queries, keys]."""
        m, past, rows = slice(block.begin, block.end), block.begin - block.first, block.end - block.begin
        if not self.mirror:
            return _times_transposed(self.q[0][..., m, :], self.k[0][..., block.first : block.last, :]).to(self.wide)
        plus = _times_transposed(self.q[0][..., m, :], self.k[0][..., block.first : block.end, :])
        minus = _times_transposed(self.q[1][..., m, :], self.k[1][..., block.begin : block.last, :])
        scores = plus.new_empty((*plus.shape[:-1], past + minus.shape[-1]), dtype=self.wide)
        scores[..., :past] = plus[..., :past]
        scores[..., past : past + rows] = torch.where(block.later, minus[..., :rows], plus[..., past:])
        scores[..., past + rows :] = minus[..., rows:]
        return scores

    def by_frame(self, block: _Block, x: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """Split x [..., queries, keys] of a block into pieces of one frame: yield the frame, the keys and the piece.

        The pieces have the dtype of q. Converted piece by piece, they are contiguous, as products want them. On the
        diagonal there are two pieces, each with 0 for the pairs of the other frame.
        """
        begin, end, first, last = block.begin, block.end, block.first, block.last
        if not self.mirror:
            yield 0, slice(first, last), x.to(self.dtype)
            return
        diagonal = x[..., begin - first : end - first].to(self.dtype)
        yield 0, slice(first, begin), x[..., : begin - first].to(self.dtype)
        yield 0, slice(begin, end), diagonal.masked_fill(block.later, 0)
        yield 1, slice(begin, end), diagonal.masked_fill(~block.later, 0)
        yield 1, slice(end, last), x[..., end - first :].to(self.dtype)

    def forward(self, out: Tensor, lse: Tensor) -> None:
        """Write out [B, Hq, S, D] and lse [B, Hq, S] of these heads."""
        values, broken = _without_broken_rows(self.v)
        for block in self.blocks():
            m, n = slice(block.begin, block.end), slice(block.first, block.last)
            scores = self.scores(block)
            if block.hidden is not None:
                scores.masked_fill_(block.hidden, -torch.inf)
            largest = scores.amax(-1, keepdim=True)
            largest.masked_fill_(largest == -torch.inf, 0)  # of a query that sees nothing
            weights = scores.sub_(largest).exp_()
            total = weights.sum(-1, keepdim=True)
            weights /= total.masked_fill(total == 0, 1)  # before the product, whose sums could overflow in float16
            result = _times(weights.to(self.dtype), values[..., n, :])
            poisoned = _touches(block.seen, broken[:, :, 0, n], block.end - block.begin)
            result.masked_fill_(poisoned[:, :, None, :, None], torch.nan)
            out[:, :, m] = result.flatten(1, 2)
            lse[:, :, m] = (largest + total.log())[..., 0].flatten(1, 2)

    def backward(self, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v of these heads."""
        # The gradient of a score is p (dp - delta), with delta = sum(out grad_out) - grad_lse.
        delta = (out.to(self.wide) * grad_out.to(self.wide)).sum(-1) - grad_lse
        lse = lse.masked_fill(lse == -torch.inf, 0)  # of a query that sees nothing: its weights are exp(-inf)
        lse, delta = (self.grouped(x)[..., None] for x in (lse, delta))
        grads = self.grouped(grad_out)
        # A weight of 0 times NaN is NaN: what enters a sum over pairs that do not see each other is finite.
        clean_grads, broken_grads = _without_broken_rows(grads)
        clean_q, clean_k = ([_without_broken_rows(x)[0] for x in frames] for frames in (self.q, self.k))
        scaled_k = [x * self.scale for x in clean_k]  # q is scaled already

        grad_q = torch.zeros_like(self.q[0], dtype=self.wide)
        grad_k = [torch.zeros_like(k, dtype=self.wide) for k in self.k]  # by frame
        grad_v = torch.zeros_like(self.v, dtype=self.wide)
        poisoned = torch.zeros_like(grad_v[..., 0], dtype=torch.bool)  # the rows of v that a broken query sees
        for block in self.blocks():
            m, n = slice(block.begin, block.end), slice(block.first, block.last)
            scores = self.scores(block)
            if block.hidden is not None:  # exp must not overflow there: 0 times its derivative would be NaN
                scores.masked_fill_(block.hidden, -torch.inf)
            weights = scores.sub_(lse[..., m, :]).exp_()
            if block.hidden is not None:  # they are NaN where lse is
                weights = weights.masked_fill(block.hidden, 0)
            grad_v[..., n, :] += _sum_times(weights.to(self.dtype), clean_grads[..., m, :])
            seen_by = None if block.seen is None else block.seen.mT
            poisoned[..., n] |= _touches(seen_by, broken_grads[..., m].any(2), block.last - block.first)[:, :, None]
            grad_weights = _times_transposed(grads[..., m, :], self.v[..., n, :]).to(self.wide)
            grad_scores = grad_weights.sub_(delta[..., m, :]).mul_(weights)
            if block.hidden is not None:
                grad_scores.masked_fill_(block.hidden, 0)
            back = [torch.zeros_like(grad_q[..., m, :]) for _ in self.q]  # by frame
            for frame, keys, part in self.by_frame(block, grad_scores):
                back[frame] = back[frame] + _times(part, scaled_k[frame][..., keys, :])
                grad_k[frame][..., keys, :] += _sum_times(part, clean_q[frame][..., m, :])
            grad_q[..., m, :] = self.rotation.rows(block.begin, block.end).back(back)
        results = grad_q, self.rotation.back(grad_k), grad_v.masked_fill(poisoned[..., None], torch.nan)
        q, k, v = (x.flatten(1, 2).to(self.dtype) for x in results)
        return q, k, v


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Return left [B, Hkv, G, m, x] @ right [B, Hkv, 1, x, n], without repeating the right side G times."""
    groups, rows = left.shape[2:4]
    return _matmul(left.flatten(2, 3), right[:, :, 0]).unflatten(2, (groups, rows))


def _times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """Return left [B, Hkv, G, m, x] @ right^T [B, Hkv, 1, n, x], without repeating the right side G times."""
    # Of a part of the rows of several heads, the product would make a transposed copy, which is slow.
    return _times(left, right.contiguous().mT)


def _sum_times(left: Tensor, right: Tensor) -> Tensor:
    """Return left^T @ right, summed over the G heads of a group: [B, Hkv, G, m, n or D] -> [B, Hkv, 1, n, D]."""
    return _matmul(left.flatten(2, 3).mT, right.flatten(2, 3))[:, :, None]


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    missing = -left.shape[-1] % AMX_ROW
    if missing and left.device.type == "cpu" and left.dtype in (torch.bfloat16, torch.float16):
        # The AMX products of oneDNN read such a row on into the next one, and 0 * NaN is NaN: in torch 2.11 for almost
        # all of these lengths, in 2.13 for many, which depend on the shape.
        left, right = functional.pad(left, (0, missing)), functional.pad(right, (0, 0, 0, missing))
    return left @ right


def _without_broken_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x with zeros in the rows that have an element that is not finite, and which rows these are."""
    broken = ~x.abs().amax(-1).isfinite()  # the largest of NaN and numbers is NaN
    return x.masked_fill(broken[..., None], 0), broken


def _both(seen: Tensor | None, also: Tensor) -> Tensor:
    return also if seen is None else seen & also


def _touches(seen: Tensor | None, broken: Tensor, rows: int) -> Tensor:
    """Return which of `rows` rows see a broken one: bool [B, Hkv, rows].

    Args:
        seen: bool [B, rows, n]; None if they see all.
        broken: bool [B, Hkv, n].
    """
    if seen is None:
        return broken.any(-1, keepdim=True).expand(-1, -1, rows)
    return (broken.float() @ seen.float().mT) > 0
