"""Files are either complete or absent, folders that cannot be made are reported, and text is read as UTF-8."""

import errno
import json
import os
import resource
import signal
from pathlib import Path

import pytest

from bico_ext.files import (
    empty_folder,
    left_by_killed,
    make_folder,
    read_json,
    read_lines,
    read_text,
    write_json,
    write_json_lines,
    write_text,
)


def test_a_folder_that_cannot_be_made_says_why(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for path, reason in (("file", "File exists"), ("file/in/it", "Not a directory")):
        with pytest.raises(OSError, match=rf"output_dir .*{path} cannot be made \({reason}\); name another folder"):
            make_folder(tmp_path / path)


def test_line_breaks_in_a_value_do_not_break_its_line(tmp_path):
    value = {"text": ' "zwei"\n日本\u2028語 🎻 \t\\'}
    path = tmp_path / "new" / "rows.jsonl"
    write_json_lines(path, [value, value])
    lines = path.read_bytes().split(b"\n")
    assert lines[2:] == [b""]
    assert [json.loads(line) for line in lines[:2]] == [value, value]


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "mark"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, mark):
    (tmp_path / "names.txt").write_bytes(f"{mark}Zoë\r\nAda\rBo\u2028b\n".encode())
    assert read_text(tmp_path / "names.txt") == "Zoë\r\nAda\rBo\u2028b\n"
    assert read_lines(tmp_path / "names.txt") == ["Zoë", "Ada", "Bo\u2028b", ""]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, encoding):
    """ASCII in UTF-16 without its mark is valid UTF-8, with a zero byte before or after each character."""
    (tmp_path / "names.txt").write_bytes("Ada\n".encode(encoding))
    with pytest.raises(ValueError, match=r"names.txt: expected UTF-8, got UTF-16 .*; save the file as UTF-8"):
        read_text(tmp_path / "names.txt")


def test_a_byte_that_is_no_utf_8_is_named_with_its_line(tmp_path):
    (tmp_path / "names.txt").write_bytes("Ada\nZoë\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names.txt, line 2: expected UTF-8, got .* 0xeb .*; save the file as UTF-8"):
        read_text(tmp_path / "names.txt")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"model": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    """The error of a write has no name. The limit for the size of a file stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/results\.json'$") as raised:
            write_text(tmp_path / "results.json", "x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (raised.value.errno, os.listdir(tmp_path)) == (errno.EFBIG, [])


def test_what_is_renamed_is_on_the_disk(tmp_path, monkeypatch):
    """Else a power failure could leave the name with nothing behind it."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("renamed"), replace(*paths)))
    write_text(tmp_path / "results.json", "{}")
    assert done == [str(tmp_path / f".results.json.{os.getpid()}"), "renamed"]


def test_what_a_killed_process_leaves_is_no_output(tmp_path):
    """A folder with nothing else counted as used, so the same command refused to start again."""
    child = os.fork()
    if child == 0:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write_text(tmp_path / "out" / "results.json", "{}")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = (tmp_path / "out").iterdir()
    assert left_by_killed(left)
    assert empty_folder(str(tmp_path / "out")) == tmp_path / "out"
    assert not any(map(left_by_killed, map(Path, ("results.json", ".lock", ".git", "run.1", ".env.local"))))
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="already holds files"):
        empty_folder(str(tmp_path / "out"))


def test_a_broken_file_is_named(tmp_path):
    for content in b"", b'{"a": 1', b"\xff\xfe":
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.json is broken \(.*\); delete it$"):
            read_json(tmp_path / "run.json", "delete it")
