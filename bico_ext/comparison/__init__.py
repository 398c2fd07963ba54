"""The comparison: every system with every seed, from shared initial models; and the probe of a frozen model."""
