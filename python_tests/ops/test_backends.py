"""Which backend runs, and what is said when the one that was asked for cannot."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from devices import needs_compiled

from bico_ext import split_triangle_attention
from bico_ext.ops import backends


@pytest.fixture
def nothing_compiled(monkeypatch):
    monkeypatch.setattr(backends, "compiled", None)
    monkeypatch.setattr(backends, "_WITHOUT", backends.NOT_COMPILED)
    monkeypatch.setattr(backends, "_LOGGED", set())


@pytest.fixture(autouse=True)
def _no_choice_by_the_environment(monkeypatch):
    monkeypatch.delenv("BICO_BACKEND", raising=False)


def run(**options):
    q, k, v, cos, sin = torch.zeros(5, 1, 1, 3, 4).unbind()
    return split_triangle_attention(q, k, v, cos[0], sin[0], **options)


Q = torch.zeros(1, 1, 3, 4)


@needs_compiled
def test_auto_is_the_compiled_op_where_it_has_kernels():
    assert backends.choose("auto", Q) == "compiled"
    elsewhere = SimpleNamespace(device=SimpleNamespace(type="xpu"), dtype=Q.dtype, shape=Q.shape)
    assert backends.choose("auto", elsewhere) == "portable"


@needs_compiled
def test_the_environment_replaces_auto_and_no_explicit_choice(monkeypatch):
    monkeypatch.setenv("BICO_BACKEND", "")
    assert backends.choose("auto", Q) == "compiled"
    monkeypatch.setenv("BICO_BACKEND", "portable")
    assert backends.choose("auto", Q) == "portable"
    assert backends.choose("compiled", Q) == "compiled"


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_the_named_backend_runs(backend, monkeypatch):
    ran = []
    for name in backends.BACKENDS:

        def attention(*arguments, name=name):
            ran.append(name)
            return arguments[0], arguments[0]

        monkeypatch.setitem(backends.BACKENDS, name, backends.Backend(attention, lambda device: None))
    run(backend=backend)
    assert ran == [backend]


@pytest.mark.usefixtures("nothing_compiled")
def test_a_fallback_is_logged_once(caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        run()
    assert [record.getMessage() for record in caplog.records] == [
        f"attention runs on the portable backend: {backends.NOT_COMPILED}"
    ]


@pytest.mark.usefixtures("nothing_compiled")
def test_a_backend_that_is_missing_is_refused_with_its_reason():
    message = f"backend 'compiled' cannot run on cpu: {backends.NOT_COMPILED}; use 'auto'"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        run(backend="compiled")


@pytest.mark.usefixtures("nothing_compiled")
def test_a_backend_of_the_environment_that_is_missing_is_refused_with_its_way_out(monkeypatch):
    monkeypatch.setenv("BICO_BACKEND", "compiled")
    message = f"BICO_BACKEND 'compiled' cannot run on cpu: {backends.NOT_COMPILED}; unset BICO_BACKEND"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        run()


@pytest.mark.usefixtures("nothing_compiled")
def test_a_fallback_can_be_compiled_as_one_graph():
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert compiled().shape == (1, 1, 3, 4)


def test_an_unknown_backend_is_refused(monkeypatch):
    names = "'auto', 'compiled', 'flex', 'portable'"
    with pytest.raises(ValueError, match=re.escape(f"backend must be one of {names}, got 'cuda'")):
        run(backend="cuda")
    monkeypatch.setenv("BICO_BACKEND", "fast")
    with pytest.raises(ValueError, match=re.escape(f"BICO_BACKEND must be one of {names}, got 'fast'")):
        run()


@pytest.mark.usefixtures("nothing_compiled")
def test_the_description_gives_devices_or_reasons():
    shown = backends.describe()
    assert shown["portable"].startswith("cpu")
    assert shown["compiled"] == f"none: {backends.NOT_COMPILED}"
    assert shown["flex"].startswith("cuda; not cpu: " if torch.cuda.is_available() else "none: ")


@needs_compiled
def test_the_description_says_how_to_get_kernels_for_a_gpu(monkeypatch):
    monkeypatch.setattr(backends.compiled, "DEVICES", ("cpu",))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    shown = backends.describe()
    assert shown["compiled"] == (
        "cpu; not cuda: this build of bico-ext has no kernels for cuda devices; `BICO_BUILD=ON pip install -v "
        "--no-build-isolation -C cmake.define.BICO_CUDA=ON .` in the source folder compiles them or says why it cannot"
    )
    assert shown["portable"] == "cpu, cuda"
