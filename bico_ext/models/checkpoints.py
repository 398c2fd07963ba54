"""Loading a model and its tokenizer from a folder or the hub, with errors that name the model."""

import os
from pathlib import Path
from typing import Any

from bico_ext.models.known_models import KNOWN_MODELS, model_folder


def load(model: str | os.PathLike[str], dtype: str = "float32") -> tuple[Any, Any]:
    """Load a causal LM and its tokenizer.

    Args:
        model: a folder, the name of a model that `bico fetch-model` has fetched, or a hub name.
        dtype: torch's name for the dtype of the weights.

    Returns:
        The model and the tokenizer.

    Raises:
        FileNotFoundError: there is no such folder, it contains no model, or the known model has not been fetched.
        OSError: the model cannot be loaded. The libraries raise many kinds of errors for a broken file, most of them
            without its name; this one names the model.

    Example:
        >>> network, tokenizer = load("out/runs/bico-seed0")  # doctest: +SKIP
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # imported here because it takes seconds

    source = _source(os.fspath(model))
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype), AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise OSError(f"model {os.fspath(model)} cannot be loaded: {error}") from error


def count_parameters(model: str | os.PathLike[str]) -> int:
    """Return the number of parameters of a causal LM, without loading its weights.

    Args:
        model: a folder or a hub name.

    Raises:
        FileNotFoundError: there is no such folder, or it contains no model.
        OSError: the configuration of the model cannot be loaded.

    Example:
        >>> count_parameters("path/to/smollm2-135m")  # doctest: +SKIP
        134515008
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = _source(os.fspath(model))
    try:
        config = AutoConfig.from_pretrained(source)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).num_parameters()
    except Exception as error:
        raise OSError(f"model {os.fspath(model)} cannot be loaded: {error}") from error


def _source(model: str) -> str:
    """Return what transformers loads: the folder of a known model, and other models as they are named.

    A path that is not a model folder is an error. transformers would take the path for a hub name, or complain about a
    missing tokenizer.
    """
    path = Path(model)
    if path.is_dir():
        if not ((path / "config.json").exists() or (path / "adapter_config.json").exists()):
            raise FileNotFoundError(
                f"model {model} is a folder without a config.json; bico compare puts its models in OUT/runs/"
            )
    elif path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise FileNotFoundError(f"model {model}: no such folder")
    elif model in KNOWN_MODELS:
        if not model_folder(model).exists():
            raise FileNotFoundError(f"model {model} has not been fetched yet; run: bico fetch-model {model}")
        return str(model_folder(model))
    return model
