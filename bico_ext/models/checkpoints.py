"""Loading a model and its tokenizer from a folder or the hub, with errors that name the model; notes beside a model."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bico_ext.extras import install
from bico_ext.files import expand_user, read_json, write_json
from bico_ext.models.known_models import KNOWN_MODELS, model_folder

# A model is data: its weights are never unpickled, which may run what a stranger wrote, nor is code beside them run.
# Without the second, transformers asks the user and waits.
UNTRUSTED = {"use_safetensors": True, "trust_remote_code": False}
_FOUR_BIT_MARK = "base_in_4bit.json"  # in a folder of adapters that were trained on 4-bit weights


def load(
    model: str | os.PathLike[str],
    dtype: str = "float32",
    *,
    load_in_4bit: bool = False,
    device: Any = None,
    merge_adapters: bool = False,
) -> tuple[Any, Any]:
    """Load a causal LM and its tokenizer.

    A folder of adapters is loaded by PEFT, on the base model that the adapters name. transformers' own loader would
    leave out the magnitudes of DoRA.

    Models are not trusted: weights are read from safetensors only, and code that comes with a model is not run.

    Args:
        model: a folder, the name of a model that `bico fetch-model` has fetched, or a hub name.
        dtype: torch's name for the dtype of the weights.
        load_in_4bit: quantise the linear layers to 4 bits as in QLoRA (arXiv 2305.14314: NF4, quantised constants,
            computed in bfloat16), with bitsandbytes; default False. Adapters that `bico train` has trained on such a
            base are loaded on one in any case.
        device: where the weights are put; default None, which is the current GPU if there is one.
        merge_adapters: add adapters to the weights, so that the model can be trained on; default False.

    Returns:
        The model and the tokenizer. With adapters that are not merged, the model is a PEFT model.

    Raises:
        FileNotFoundError: there is no such folder, it contains no model, its adapters' base is gone, or the known model
            has not been fetched.
        ImportError: 4-bit weights need bitsandbytes, or adapters need PEFT.
        TypeError: the adapters are virtual tokens, see `check_adapters`.
        ValueError: adapters on 4-bit weights are to be merged.
        OSError: the model cannot be loaded, because its weights are pickled, for example. The libraries raise many
            kinds of errors for a broken file, most of them without its name; this one names the model.

    Example:
        >>> network, tokenizer = load("out/runs/bico-seed0")  # doctest: +SKIP
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # imported here because it takes seconds

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    source = _source(expand_user(model))
    _check_not_pickled(source)
    has_adapters = (Path(source) / "adapter_config.json").exists()
    load_in_4bit |= has_four_bit_base(source)
    if load_in_4bit and has_adapters and merge_adapters:
        raise ValueError(
            f"model {os.fspath(model)} has adapters on 4-bit weights, to which they cannot be added; start from the "
            "base model"
        )
    base = _base(source) if has_adapters else None
    options = {"quantization_config": _four_bit(), "device_map": {"": device}} if load_in_4bit else {}
    loader: Any = _peft_loader() if has_adapters else AutoModelForCausalLM
    try:
        network = loader.from_pretrained(source, dtype=dtype, **UNTRUSTED, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        adapters = "" if base is None else f"; its adapters are on the base model {base}"
        raise OSError(f"model {os.fspath(model)} cannot be loaded: {error}{adapters}") from error
    check_adapters(network)
    if has_adapters and merge_adapters:
        network = network.merge_and_unload().requires_grad_(True)  # PEFT had frozen the base
    return network if load_in_4bit else network.to(device), tokenizer  # 4-bit weights are there, and cannot be moved


def check_adapters(model: Any) -> None:
    """Raise an error if a model has adapters that are virtual tokens in front of a text.

    These are prompt tuning, prefix tuning and P-tuning. No span ids say who sees those tokens, and PEFT 0.21 with
    transformers 5.24 generates other answers with them than the model's own forward gives.

    Raises:
        TypeError: it has; the message names the kind.

    Example:
        >>> check_adapters("any other object")
    """
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            raise TypeError(
                f"model has adapters of the kind {config.peft_type.value}, which are virtual tokens in front of a "
                "text; neither span ids nor generation take them into account; use adapters within the layers, such as "
                "LoRA or IA3"
            )


@contextmanager
def any_generation_config(model: Any, folder: Path) -> Iterator[None]:
    """Let the block save a model into a folder, even if its generation config is not valid.

    Llama 2's has a temperature without sampling, for example. transformers refuses to write such a config, if the
    Trainer has changed a token id in it, before it writes any weight. Here it is written as it is.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> model = LlamaForCausalLM(config)
        >>> model.generation_config.temperature = 0.6
        >>> folder = Path(tempfile.mkdtemp())
        >>> with any_generation_config(model, folder):
        ...     model.save_pretrained(folder)
        >>> '"temperature": 0.6' in (folder / "generation_config.json").read_text()
        True
    """
    from transformers import GenerationConfig, PreTrainedModel

    config: Any = model.generation_config if isinstance(model, PreTrainedModel) else None  # adapters have none
    try:
        valid = config is None or config.validate(strict=True) is None
    except ValueError:
        valid = False
    if valid:
        yield
        return
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = config
    file = folder / "generation_config.json"
    if file.exists():
        config.to_json_file(file, keys_to_pop=["compile_config"])


def mark_four_bit(folder: Path) -> None:
    """Note in a folder of adapters that their base has 4-bit weights; `load` reads the note."""
    write_json(folder / _FOUR_BIT_MARK, {"load_in_4bit": True})


def has_four_bit_base(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder has the note of `mark_four_bit`."""
    return (Path(expand_user(folder)) / _FOUR_BIT_MARK).exists()


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

    source = _source(expand_user(model))
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).num_parameters()
    except Exception as error:
        raise OSError(f"model {os.fspath(model)} cannot be loaded: {error}") from error


def content_digest(model: str | os.PathLike[str]) -> str:
    """Return what identifies the content of a model, for the record of a result: a path may hold another one tomorrow.

    Args:
        model: a folder, the name of a model that `bico fetch-model` has fetched, or a hub name.

    Returns:
        Of a folder the SHA-256 of its configuration, weights and tokenizer, and with adapters of those of their base;
        of a name on the hub its commit.

    Raises:
        FileNotFoundError: as in `load`.
        OSError: the files cannot be read, or the hub has no such model.

    Example:
        >>> content_digest("out/runs/bico-seed0")  # doctest: +SKIP
        'sha256 9d5f...'
    """
    from transformers import AutoConfig

    source = _source(expand_user(model))
    folder = Path(source)
    if not folder.is_dir():
        return f"commit {AutoConfig.from_pretrained(source, trust_remote_code=False)._commit_hash}"
    found = hashlib.sha256()
    patterns = ("config.json", "adapter_config.json", "*.safetensors", "tokenizer*")
    for file in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        found.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                found.update(block)
    adapters = folder / "adapter_config.json"
    if adapters.exists():
        found.update(content_digest(_base(source)).encode())
    return f"sha256 {found.hexdigest()}"


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


def _base(adapters: str) -> str:
    """Return the base model that a folder of adapters names, after a check that it is not gone."""
    file = Path(adapters) / "adapter_config.json"
    config = read_json(file, "get the adapters again")
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    try:
        if not (isinstance(base, str) and base):
            raise FileNotFoundError
        _source(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model {adapters} has adapters on the base model {base!r}, which is not there; write its name or its "
            f"absolute path as base_model_name_or_path into {file}"
        ) from error
    return base


def _check_not_pickled(source: str) -> None:
    """Raise an error if a folder has weights, and only pickled ones: PEFT would read them in silence."""
    folder = Path(source)
    pickled = sorted({*folder.glob("*model*.bin"), *folder.glob("*model*.pt")})
    if pickled and not any(folder.glob("*.safetensors")):
        raise OSError(
            f"model {source} has its weights in {pickled[0].name}, a pickle, which may run code when it is read; if "
            "you trust it, load it with transformers or PEFT and save it again (save_pretrained writes safetensors)"
        )


def _four_bit() -> Any:
    """Return QLoRA's settings for a base of 4 bits."""
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(f"a base in 4 bits needs bitsandbytes: {install('qlora')}")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _peft_loader() -> Any:
    try:
        from peft import AutoPeftModelForCausalLM
    except ImportError as error:
        raise ImportError(f"a folder of adapters needs PEFT: {install('lora')}") from error
    return AutoPeftModelForCausalLM
