"""Files are either complete or absent, folders that cannot be made are reported, and text is read as UTF-8."""

import json
import os

import pytest

from bico_ext.files import make_folder, read_lines, read_text, write_json, write_json_lines, write_text


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
