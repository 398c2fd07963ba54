"""Where a command writes, and what it says that it wrote."""

from collections.abc import Sequence
from pathlib import Path

from bico_ext.files import make_folder


def empty_folder(path: str) -> Path:
    """The output folder, made before the work."""
    folder = make_folder(path)
    if any(folder.iterdir()):
        raise FileExistsError(f"output_dir {folder} already holds files; name another folder")
    return folder


def name_files(folder: str, names: Sequence[str]) -> None:
    """Say which of the files that a command may write are there."""
    print(f"{folder}: {', '.join(name for name in names if (Path(folder) / name).exists())}")
