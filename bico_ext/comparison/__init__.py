"""The comparison: every system with every seed, from shared initial models."""
