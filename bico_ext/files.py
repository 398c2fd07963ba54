"""Paths as users give them, text files as users write them, and atomic writes.

A written file is either complete or absent, because it is written under a temporary name and then renamed.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


def expand_user(path: str | os.PathLike[str]) -> str:
    """Return a path as it is, but with the home folder in place of a leading `~`.

    A shell replaces it, but not in quotes or in a YAML file, so every function that takes a path from a user
    calls this. Names of models and data sets stay as they are.

    Raises:
        TypeError: the path is neither a string nor a path.
        ValueError: the path is empty, as that of a shell variable that is not set; it would mean the current folder.

    Example:
        >>> expand_user("~/facts") == os.path.join(os.path.expanduser("~"), "facts")
        True
        >>> expand_user("./synthetic")
        './synthetic'
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"expected a path or a name, got {type(path).__name__} {path!r:.60}")
    path = os.fspath(path)
    if not path:
        raise ValueError("expected a path or a name, got an empty string; use '.' for the current folder")
    return os.path.expanduser(path)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` if the block succeeds.

    Until then an existing file at `path` keeps its old content. Parent folders are created. Errors name the path.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "results" / "scores.txt"
        >>> with atomic_write(target) as temporary:
        ...     _ = temporary.write_text("0.5")
        >>> target.read_text()
        '0.5'
    """
    path = Path(expand_user(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # as left_by_killed() expects it
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # as that of a full disk
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Write a file, or all files of a folder, to the disk, so that no power failure cuts what is renamed now.

    This took 8 ms for a small file and 0.2 s for 540 MB, on a virtual disk.
    """
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            opened = os.open(file, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)


def left_by_killed(path: Path) -> bool:
    """Tell whether a file is what `atomic_write` leaves if its process is killed.

    Example:
        >>> left_by_killed(Path("out/.results.json.4711")), left_by_killed(Path("out/results.json"))
        (True, False)
    """
    return re.fullmatch(r"\..+\.\d+", path.name) is not None


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create the folder that a command writes to.

    Commands call this before they start to work, so that a bad path does not cost them their results.

    Raises:
        OSError: the path or one of its parents is a file, or the folder is not writable.
    """
    folder = Path(expand_user(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"output_dir {folder} cannot be made ({error.strerror}); name another folder") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"output_dir {folder} is not writable; name another folder")
    return folder


def empty_folder(path: str) -> Path:
    """Create the output folder before the work starts.

    Raises:
        FileExistsError: the folder holds files.
        OSError: the folder cannot be made or is not writable.
    """
    folder = make_folder(path)
    if not all(map(left_by_killed, folder.iterdir())):
        raise FileExistsError(f"output_dir {folder} already holds files; name another folder")
    return folder


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file of a user: UTF-8, with or without a byte order mark, which is left out. Line breaks stay.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8. The message names the file and, if it can, the line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "names.txt"
        >>> _ = file.write_bytes("\\ufeffAda".encode())
        >>> read_text(file)
        'Ada'
    """
    content = Path(expand_user(path)).read_bytes()
    if b"\0" in content:  # ASCII in UTF-16 without its mark would pass for UTF-8
        raise ValueError(f"{path}: expected UTF-8, got UTF-16 or no text at all; save the file as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: expected UTF-8, got {error}; save the file as UTF-8") from error


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Read the lines of a text file as `read_text` does; unlike `str.splitlines`, it does not cut at U+2028."""
    return re.split(r"\r\n?|\n", read_text(path))


class _Loader(yaml.SafeLoader):
    """Reads `no` and `off` as words, which some options take, and 1e-4 as a number: YAML 1.2 does, PyYAML does not."""


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in (f"{_TAG}bool", f"{_TAG}float")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(?i:true|false)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(?i:inf)$|\.(?i:nan)$"),
    list("-+.0123456789"),
)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file of a user.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8 or not YAML.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "options.yaml"
        >>> _ = file.write_text("save_strategy: no\\nlearning_rate: 1e-4")
        >>> read_yaml(file)
        {'save_strategy': 'no', 'learning_rate': 0.0001}
    """
    text = read_text(path)
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the second of an impossible date, say
        raise ValueError(f"{path}: expected YAML, got {' '.join(str(error).split())}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8; parent folders are created."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON; NaN raises ValueError because JSON cannot represent it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> Any:
    """Read a file that `write_json` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is broken; the message names it, and ends with the remedy.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{path} is broken ({error}); {remedy}") from error


def write_json_lines(path: str | os.PathLike[str], rows: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
