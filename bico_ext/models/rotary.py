"""How a model pairs the elements of a head when it rotates them, and ChatGLM-6B's two-dimensional positions."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pairing:
    """Which elements of a head turn together, and how the model's own cos and sin list the pairs.

    Attributes:
        interleaved: pairs are (2i, 2i + 1), as in GLM, instead of (i, i + R/2), as in Llama (the default).
        interleaved_tables: entries (2i, 2i + 1) of a table [.., R] belong to pair i, as in Cohere, instead of entries
            (i, i + R/2), as in Llama and GLM (the default).
    """

    interleaved: bool = False
    interleaved_tables: bool = False

    @property
    def elements(self) -> str:
        """The two elements of a pair, for messages."""
        return "(2i, 2i + 1)" if self.interleaved else "(i, i + R/2)"

    def pairs(self, table: Tensor) -> Tensor:
        """One value for each pair, [.., R/2], from a table [.., R] of the model."""
        return table[..., ::2] if self.interleaved_tables else table[..., : table.shape[-1] // 2]

    def table(self, pairs: Tensor) -> Tensor:
        """A table [.., R] as the model lists it; the inverse of `pairs`."""
        return _twice(pairs, self.interleaved_tables)

    def by_element(self, table: Tensor) -> Tensor:
        """The table [.., R] with entry j for element j of the head, as `split_triangle_attention` takes it."""
        if self.interleaved == self.interleaved_tables:
            return table
        return _twice(self.pairs(table), self.interleaved)


def probe(attention: type[nn.Module]) -> Pairing:
    """Find out how the attention class rotates, from the `apply_rotary_pos_emb` of the module that defines it.

    It is asked to turn one element by a quarter, with a different sine for each entry of the table: where the element
    lands tells the pairing, and by which sine it was multiplied tells the layout of the tables.

    Args:
        attention: an attention class of transformers.

    Returns:
        The pairing; Llama's where there is no such function or it takes other arguments. It is a guess until a forward
        has confirmed it.

    Example:
        >>> from transformers.models.glm.modeling_glm import GlmAttention
        >>> probe(GlmAttention)
        Pairing(interleaved=True, interleaved_tables=False)
    """
    rotate: Callable[..., tuple[Tensor, Tensor]] | None
    rotate = getattr(sys.modules[attention.__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        return Pairing()
    element_2 = torch.eye(8, device="cpu")[2].view(1, 1, 1, 8)  # [B, H, S, D]
    sin = torch.arange(1.0, 9.0, device="cpu").view(1, 1, 8)  # [B, S, R]
    try:
        turned = rotate(element_2, element_2, torch.zeros_like(sin), sin)[0].abs().flatten()
    except Exception:  # made for other arguments, complex numbers for example
        return Pairing()
    interleaved = int(turned.argmax()) == 3  # the partner of element 2; in halves it is 6
    return Pairing(interleaved, interleaved and int(turned.max()) in (3, 4))  # entries 2 and 3: pair 1's


def block_tables(
    rotary: Callable[..., tuple[Tensor, Tensor]], block_positions: Tensor, pairing: Pairing, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of ChatGLM-6B's two-dimensional positions.

    The first half of a head's pairs turn with the first position, the second half with the second, each half at the
    frequencies of a rotary embedding of half the width: every other one of the model's own. ChatGLM-6B puts the two
    halves' pairs into the two halves of a head; that is the same up to a fixed permutation of a head's elements.

    Args:
        rotary: the model's rotary module: `rotary(x, position_ids [B, S])` gives cos and sin [B, S, R] in x's dtype and
            on its device, scaled as the model is configured.
        block_positions: int64 [B, 2, S].
        pairing: how `rotary` lists the pairs.
        dtype: of the tables.

    Returns:
        cos, sin [B, S, R], as `rotary` lists them.

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
            f"block_positions need an even number of rotary pairs in a head, but the model rotates {width} elements; "
            "use position_ids"
        )
    cos, sin = (
        pairing.table(torch.cat([pairing.pairs(table)[..., ::2] for table in tables], dim=-1))
        for tables in zip(first, second, strict=True)
    )
    return cos, sin


def _twice(pairs: Tensor, interleaved: bool) -> Tensor:
    return pairs.repeat_interleave(2, dim=-1) if interleaved else torch.cat((pairs, pairs), dim=-1)
