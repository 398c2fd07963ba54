"""The comparison: every system under every seed, from the same initial models; and the probe of a frozen one."""
