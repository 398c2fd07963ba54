"""Models as they lie in a folder or on the hub, with errors that name them."""

import os
from pathlib import Path
from typing import Any


def load(model: str | os.PathLike[str], dtype: str = "float32") -> tuple[Any, Any]:
    """A causal LM and its tokenizer.

    Args:
        model: a folder or a hub name.
        dtype: of the weights, a name of torch's.

    Raises:
        FileNotFoundError: there is no such folder, or no model in it.
        OSError: it cannot be loaded; about a broken file libraries raise errors of many kinds, most without its name.

    Example:
        >>> network, tokenizer = load("out/runs/bico-seed0")  # doctest: +SKIP
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # here: the import takes seconds

    _check_source(os.fspath(model))
    try:
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype), AutoTokenizer.from_pretrained(model)
    except Exception as error:
        raise OSError(f"model {os.fspath(model)} cannot be loaded: {error}") from error


def _check_source(model: str) -> None:
    """Say what is wrong with a path; transformers would take it for a hub name or miss a tokenizer."""
    path = Path(model)
    if path.is_dir():
        if not ((path / "config.json").exists() or (path / "adapter_config.json").exists()):
            raise FileNotFoundError(
                f"model {model} is a folder without a config.json; bico compare puts its models in OUT/runs/"
            )
    elif path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise FileNotFoundError(f"model {model}: no such folder")
