"""How to install the optional packages, the extras of pyproject.toml: one sentence for all messages that need it."""


def install(extra: str) -> str:
    """Return the command that installs optional packages, which works in the folder of a clone.

    Example:
        >>> install("lora")
        'pip install --no-build-isolation ".[lora]" (in the clone of bico-ext)'
    """
    return f'pip install --no-build-isolation ".[{extra}]" (in the clone of bico-ext)'
