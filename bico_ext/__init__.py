"""bico-ext: split-triangle RoPE attention and mask denoising against the reversal curse."""

from bico_ext.attention import split_triangle_attention

__all__ = ["split_triangle_attention"]
