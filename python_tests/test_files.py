"""Files are either complete or absent, and folders that cannot be made are reported."""

import json
import os

import pytest

from bico_ext.files import make_folder, write_json, write_json_lines, write_text


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
