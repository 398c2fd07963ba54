"""Hugging Face models: split-triangle attention plugged in, checkpoints, token ids."""
