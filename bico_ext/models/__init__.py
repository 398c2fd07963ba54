"""Hugging Face models: attaching split-triangle attention, loading checkpoints, tokenization."""
