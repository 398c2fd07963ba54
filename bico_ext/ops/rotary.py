"""The rotation of queries and keys into both frames, for the backends in plain torch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """R(m) and R(-m) at positions m, as products with the tables of a model.

    Attributes:
        cos, sin: [..., S, R], broadcastable to the first R columns of what is rotated.
        interleaved: a pair is columns 2 i and 2 i + 1, rather than columns i and i + R / 2.
        mirror: there is a minus frame beside the plus frame.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool
    mirror: bool

    def rows(self, begin: int, end: int) -> "Rotation":
        """Return the rotation at positions begin, ..., end - 1."""
        return Rotation(self.cos[..., begin:end, :], self.sin[..., begin:end, :], self.interleaved, self.mirror)

    def frames(self, x: Tensor) -> list[Tensor]:
        """Return x [..., S, D] rotated into the plus frame, by R(m), and into the minus frame, by R(-m)."""
        rotary, rest = self._split(x)
        along, across = rotary * self.cos, self._quarter_turn(rotary) * self.sin
        frames = [along + across, along - across] if self.mirror else [along + across]
        return [_joined(frame, rest) for frame in frames]

    def back(self, frames: list[Tensor]) -> Tensor:
        """Return the sum of the frames, each rotated by the inverse of its rotation: the gradient of `frames`."""
        if not self.mirror:
            (total,) = (difference,) = frames
        else:
            plus, minus = frames
            total, difference = plus + minus, plus - minus
        rotary, rest = self._split(total)
        across = self._quarter_turn(self._split(difference)[0] * self.sin)
        return _joined(rotary * self.cos - across, rest)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width = self.cos.shape[-1]
        return x[..., :width], x[..., width:]

    def _quarter_turn(self, x: Tensor) -> Tensor:
        """Return (-b, a) for each pair (a, b)."""
        if self.interleaved:
            return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), -1)


def _joined(rotary: Tensor, rest: Tensor) -> Tensor:
    return torch.cat((rotary, rest), -1) if rest.shape[-1] else rotary
