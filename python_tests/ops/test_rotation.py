"""`Rotation` against complex numbers, and its hand-written gradient against autograd."""

import pytest
import torch

from bico_ext.ops.rotary import Rotation

S, D = 5, 10


def make_rotation(width, interleaved, mirror):
    """A rotation of the first `width` of D columns, and the angle of each pair [S, width / 2]."""
    angle = torch.rand(S, width // 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6
    table = angle.repeat_interleave(2, -1) if interleaved else angle.repeat(1, 2)
    return Rotation(table.cos(), table.sin(), interleaved, mirror), angle


def draw(seed):
    return torch.randn(2, S, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("width", [0, 4, D])
def test_frames_turn_each_pair_by_its_angle(width, interleaved, mirror):
    rotation, angle = make_rotation(width, interleaved, mirror)
    x = draw(1)
    half = width // 2
    first, second = (slice(0, width, 2), slice(1, width, 2)) if interleaved else (slice(half), slice(half, width))
    frames = rotation.frames(x)
    assert len(frames) == (2 if mirror else 1)
    for frame, sign in zip(frames, (1, -1), strict=False):
        want = torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones_like(angle), sign * angle)
        torch.testing.assert_close(torch.complex(frame[..., first], frame[..., second]), want)
        assert torch.equal(frame[..., width:], x[..., width:])


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("width", [0, 4, D])
def test_back_is_the_gradient_of_the_frames(width, interleaved, mirror):
    rotation, _ = make_rotation(width, interleaved, mirror)
    x = draw(1).requires_grad_()
    frames = rotation.frames(x)
    grads = [draw(2 + number) for number in range(len(frames))]
    (want,) = torch.autograd.grad(frames, x, grads)
    torch.testing.assert_close(rotation.back(grads), want)


def test_rows_are_the_rotation_at_these_positions():
    rotation, _ = make_rotation(4, False, True)
    x = draw(1)
    for part, whole in zip(rotation.rows(1, 3).frames(x[:, 1:3]), rotation.frames(x), strict=True):
        assert torch.equal(part, whole[:, 1:3])
