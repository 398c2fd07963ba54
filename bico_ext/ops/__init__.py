"""The op, split-triangle RoPE attention: its backends, and the dense reference that defines it."""
