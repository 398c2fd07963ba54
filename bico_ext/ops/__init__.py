"""The op: split-triangle rotary attention, and the dense definition that judges it."""
