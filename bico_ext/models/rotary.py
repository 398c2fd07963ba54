"""Rotary pairings (which elements of a head are rotated together) and ChatGLM-6B's two-dimensional positions."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pairing:
    """Which elements of a head are rotated together, and the layout of the model's own cos and sin tables.

    Attributes:
        interleaved: rotary pairs are (2i, 2i + 1), as in GLM, instead of (i, i + R/2), as in Llama (the default).
        interleaved_tables: entries (2i, 2i + 1) of a table [.., R] belong to pair i, as in Cohere, instead of entries
            (i, i + R/2), as in Llama and GLM (the default).
    """

    interleaved: bool = False
    interleaved_tables: bool = False

    @property
    def elements(self) -> str:
        """The two elements of pair i, for messages."""
        return "(2i, 2i + 1)" if self.interleaved else "(i, i + R/2)"

    def pairs(self, table: Tensor) -> Tensor:
        """Take one value per pair, [.., R/2], from a table [.., R] of the model."""
        return table[..., ::2] if self.interleaved_tables else table[..., : table.shape[-1] // 2]

    def table(self, pairs: Tensor) -> Tensor:
        """Build a table [.., R] in the model's layout from one value per pair; the inverse of `pairs`."""
        return _repeat_for_elements(pairs, self.interleaved_tables)

    def by_element(self, table: Tensor) -> Tensor:
        """Reorder a table [.., R] so that entry j belongs to element j of the head, as the op needs."""
        if self.interleaved == self.interleaved_tables:
            return table
        return _repeat_for_elements(self.pairs(table), self.interleaved)


@dataclass(frozen=True)
class Rotation:
    """The rotation that the attention hook passes to the attention function.

    Attributes:
        cos, sin: [1 or B, S, R]; entry j belongs to element j of the head. R is 0 for a layer without positions.
        pairing: the model's pairing.
    """

    cos: Tensor
    sin: Tensor
    pairing: Pairing

    def without_elements(self) -> "Rotation":
        """Return the rotation of a layer that does not rotate q and k, as every fourth layer of SmolLM3."""
        return replace(self, cos=self.cos[..., :0], sin=self.sin[..., :0])


def probe_pairing(attention: type[nn.Module]) -> Pairing:
    """Find out how an attention class rotates q and k.

    The function tested is `apply_rotary_pos_emb` of the Python module that defines the class. It gets one non-zero
    element, cosines of 0 and a different sine for each entry of the table. Where the element ends up tells the pairing;
    the sine that it was multiplied by tells the layout of the tables.

    Args:
        attention: an attention class of transformers.

    Returns:
        The pairing, or Llama's if there is no such function or it takes other arguments. Treat it as a guess until a
        forward has confirmed it.

    Example:
        >>> from transformers.models.glm.modeling_glm import GlmAttention
        >>> probe_pairing(GlmAttention)
        Pairing(interleaved=True, interleaved_tables=False)
    """
    rotate: Callable[..., tuple[Tensor, Tensor]] | None
    rotate = getattr(sys.modules[attention.__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        return Pairing()
    element_2 = torch.eye(8, device="cpu")[2].view(1, 1, 1, 8)  # [B, H, S, D]
    sin = torch.arange(1.0, 9.0, device="cpu").view(1, 1, 8)  # [B, S, R]
    try:
        rotated = rotate(element_2, element_2, torch.zeros_like(sin), sin)[0].abs().flatten()
    except Exception:  # it takes other arguments, for example complex numbers
        return Pairing()
    interleaved = int(rotated.argmax()) == 3  # the partner of element 2; in the half layout it is 6
    return Pairing(interleaved, interleaved and int(rotated.max()) in (3, 4))  # entries 2 and 3 belong to pair 1


def block_tables(
    rotary: Callable[..., tuple[Tensor, Tensor]], block_positions: Tensor, pairing: Pairing, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute cos and sin for the two-dimensional positions of ChatGLM-6B.

    The first half of a head's pairs is rotated by the first position, the second half by the second position. Each half
    uses the frequencies of a rotary embedding of half the width, which are every other one of the model's own.
    ChatGLM-6B puts the pairs of the two halves into the two halves of a head; this is the same up to a fixed
    permutation of the head's elements.

    Args:
        rotary: the model's rotary module. `rotary(x, position_ids)` with position_ids [B, S] returns cos and sin
            [B, S, R] with the dtype and on the device of x, scaled as the model is configured.
        block_positions: int64 [B, 2, S].
        pairing: the model's pairing; it names the layout of `rotary`'s tables.
        dtype: dtype of the tables.

    Returns:
        cos, sin: [B, S, R], in the layout of `rotary`'s tables.

    Raises:
        ValueError: block_positions is not int64 [B, 2, S], or the number of pairs is odd.
    """
    shape = list(block_positions.shape)
    if block_positions.dtype != torch.int64 or len(shape) != 3 or shape[1] != 2:
        got = f"{str(block_positions.dtype).removeprefix('torch.')} {shape}"
        raise ValueError(f"block_positions must be int64 [B, 2, S], got {got}")
    like = torch.empty(0, dtype=dtype, device=block_positions.device)
    first, second = (rotary(like, positions) for positions in block_positions.unbind(1))
    width = first[0].shape[-1]
    if width % 4:
        raise ValueError(
            f"block_positions need an even number of rotary pairs per head, but the model rotates {width} elements; "
            "use position_ids"
        )
    cos, sin = (
        pairing.table(torch.cat([pairing.pairs(table)[..., ::2] for table in tables], dim=-1))
        for tables in zip(first, second, strict=True)
    )
    return cos, sin


def _repeat_for_elements(pairs: Tensor, interleaved: bool) -> Tensor:
    """Give both elements of each pair its value: [.., R/2] -> [.., R]."""
    return pairs.repeat_interleave(2, dim=-1) if interleaved else torch.cat((pairs, pairs), dim=-1)
