"""Pairings found by `probe_pairing` for known families, and tables of two-dimensional positions computed by hand."""

import pytest
import torch
from tiny_models import tiny_family
from torch import Tensor, nn, tensor

from bico_ext.models.rotary import Pairing, block_tables, probe_pairing


@pytest.mark.parametrize(
    ("family", "pairing"),
    [
        ("llama", Pairing()),
        ("qwen3", Pairing()),
        ("phi", Pairing()),
        ("glm", Pairing(interleaved=True)),
        ("glm4", Pairing(interleaved=True)),
        ("helium", Pairing(interleaved=True)),
        ("ernie4_5", Pairing(interleaved=True)),
        ("cohere", Pairing(interleaved=True, interleaved_tables=True)),
        ("llama4_text", Pairing()),  # it uses complex numbers and has no such function
    ],
)
def test_probe_pairing(family: str, pairing: Pairing) -> None:
    attention = next(module for module in tiny_family(family).modules() if type(module).__name__.endswith("Attention"))
    assert probe_pairing(type(attention)) == pairing


def apply_rotary_pos_emb(q: Tensor, cos: Tensor) -> None:
    """A function that takes other arguments than `probe_pairing` passes."""


def test_probe_pairing_of_a_function_with_other_arguments() -> None:
    class Attention(nn.Module):
        pass

    assert probe_pairing(Attention) == Pairing()


def test_table_layouts_by_hand() -> None:
    halves, mixed, interleaved = Pairing(), Pairing(interleaved=True), Pairing(True, True)
    assert halves.pairs(tensor([1, 2, 1, 2])).tolist() == [1, 2]
    assert mixed.pairs(tensor([1, 2, 1, 2])).tolist() == [1, 2]
    assert interleaved.pairs(tensor([1, 1, 2, 2])).tolist() == [1, 2]
    assert halves.table(tensor([1, 2])).tolist() == [1, 2, 1, 2]
    assert mixed.table(tensor([1, 2])).tolist() == [1, 2, 1, 2]
    assert interleaved.table(tensor([1, 2])).tolist() == [1, 1, 2, 2]
    assert halves.by_element(tensor([1, 2, 1, 2])).tolist() == [1, 2, 1, 2]
    assert mixed.by_element(tensor([1, 2, 1, 2])).tolist() == [1, 1, 2, 2]
    assert interleaved.by_element(tensor([1, 1, 2, 2])).tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("pairing", [Pairing(), Pairing(True), Pairing(True, True)], ids=["llama", "glm", "cohere"])
def test_block_tables_by_hand(pairing: Pairing) -> None:
    """Four pairs have the frequencies 1, .1, .01, .001. At half the width these are 1 and .01, for each position."""

    def rotary(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids[..., None] * tensor([1.0, 0.1, 0.01, 0.001])
        table = angle.repeat_interleave(2, dim=-1) if pairing.interleaved_tables else torch.cat((angle, angle), dim=-1)
        return table.cos().to(x.dtype), table.sin().to(x.dtype)

    cos, sin = block_tables(rotary, tensor([[[5, 3], [0, 2]]]), pairing, torch.float64)
    angle = tensor([[[5.0, 0.05, 0.0, 0.0], [3.0, 0.03, 2.0, 0.02]]])  # [B, S, pairs]
    expected = angle.repeat_interleave(2, dim=-1) if pairing.interleaved_tables else torch.cat((angle, angle), dim=-1)
    assert cos.dtype == torch.float64
    torch.testing.assert_close(cos.float(), expected.cos())
    torch.testing.assert_close(sin.float(), expected.sin())
