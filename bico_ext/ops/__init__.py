"""The op, split-triangle RoPE attention, and the dense reference that defines it."""
