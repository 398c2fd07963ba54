"""Tests of this folder read a real pre-trained model; where there is none, they are skipped with the reason."""

import os
from pathlib import Path
from typing import Any

import pytest

from bico_ext.models import checkpoints
from bico_ext.models.known_models import model_folder


@pytest.fixture(scope="session")
def real_model() -> tuple[Any, Any]:
    """smollm2-135m and its tokenizer, from $BICO_TEST_MODEL or from the folder of `bico fetch-model`."""
    folder = Path(os.environ.get("BICO_TEST_MODEL") or model_folder("smollm2-135m"))
    if not folder.exists():
        pytest.skip(f"{folder} does not exist; `make test-real` fetches the model, or name its folder: BICO_TEST_MODEL")
    model, tokenizer = checkpoints.load(folder, device="cpu")
    return model.eval(), tokenizer
