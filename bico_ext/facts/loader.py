"""`load_facts`, the one entry point for every kind of data set."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from bico_ext.facts import berglund, couplets, invented, own, relations, synthetic
from bico_ext.facts.types import FactData
from bico_ext.files import expand_user

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")


GENERATED: dict[str, Callable[[int], FactData]] = {"synthetic": synthetic.generate, "invented": invented.generate}


def load_facts(source: str | os.PathLike[str], *, seed: int = 0) -> FactData:
    """Load a fact data set.

    Args:
        source: one of

            * "synthetic": the generated set of `bico_ext.facts.synthetic`, which suits a small model without any
              knowledge (use "./synthetic" for a folder of that name);
            * "invented": the generated set of `bico_ext.facts.invented`, which suits a pre-trained model;
            * a folder with the files of Berglund et al. 2023 (`all_prompts_train.jsonl` and four tests), see
              `bico_ext.facts.berglund`;
            * a folder with `train.jsonl` and one file per task, or a JSONL file of training texts with or without
              questions, see `bico_ext.facts.own`;
            * a `.txt` file of couplets, see `bico_ext.facts.couplets`;
            * a `.csv` file of relations, see `bico_ext.facts.relations`;
            * a `.tsv` file of couples, see `bico_ext.facts.relations.load_husbands`;
            * a name on the Hugging Face hub, such as "lberglund/reversal_curse" (needs the `datasets` package).
        seed: the seed of a generated set. The other sources ignore it.

    Returns:
        The training set and its tasks.

    Raises:
        FileNotFoundError: the path does not exist, or the folder lacks files, which the message lists.
        ModuleNotFoundError: the source can only be a hub name, and `datasets` is not installed.
        OSError: the hub cannot be reached or has no such data set.
        ValueError: a line is broken (the message gives file and line number), a set has no examples, or an answer is
            blank.

    Example:
        >>> data = load_facts("synthetic")
        >>> len(data.train), list(data.tasks)
        (3600, ['N2D', 'D2N', 'N2D-reverse', 'D2N-reverse'])
    """
    if source in GENERATED:
        return GENERATED[os.fspath(source)](seed)
    path = Path(expand_user(source))
    if path.is_dir():
        return berglund.load_folder(path) if berglund.is_folder(path) else own.load_folder(path)
    if path.is_file():
        loaders = {".txt": couplets.load, ".csv": relations.load, ".tsv": relations.load_husbands}
        return loaders.get(path.suffix.lower(), own.load_file)(path)
    name = os.fspath(source)
    if not _HUB_NAME.fullmatch(name) or path.suffix in _FILE_SUFFIXES:
        raise FileNotFoundError(
            f"source must be {', '.join(map(repr, GENERATED))}, a folder, a JSONL, .txt, .csv or .tsv file or a name "
            f"on the Hugging Face hub, got {name!r}: no such file or folder in {Path.cwd()}"
        )
    return berglund.load_hub(name)
