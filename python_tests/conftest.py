"""Which devices the op's tests run on: `--device cpu --device emulated-cuda ...`; default: all that there are."""

import importlib.util

import devices
import pytest
import torch

collect_ignore_glob = ["conftest.py", "*/conftest.py"]  # as doctest modules, where two of one name would clash
if not importlib.util.find_spec("bico_ext._emulator"):
    collect_ignore_glob += ["emulator/*"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        action="append",
        choices=list(devices.EVERY),
        help="where the op's tests run; default: wherever they can",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test the op on every device as `attention`, or only on some of them."""
    fixtures = {
        "attention": devices.EVERY,
        "op": ("cpu", "portable"),
        "emulated": devices.EMULATORS,
        "unemulated": set(devices.EVERY) - set(devices.EMULATORS),
    }
    for fixture, usable in fixtures.items():
        if fixture in metafunc.fixturenames:
            names = [name for name in metafunc.config.getoption("--device") or devices.present() if name in usable]
            metafunc.parametrize(fixture, [devices.EVERY[name] for name in names], ids=names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A second schedule shows what threads do to each other in shared memory, which the float kernels do not use."""
    exact = {torch.float32, torch.float64}

    def is_exact(item: pytest.Item) -> bool:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        dtypes = {x for x in parameters if isinstance(x, torch.dtype)}
        return bool(dtypes & exact) or item.name.startswith("test_gradcheck")

    for_one_schedule = [item for item in items if "emulated-cuda-random" in item.name and is_exact(item)]
    if for_one_schedule and "emulated-cuda" in (config.getoption("--device") or devices.present()):
        config.hook.pytest_deselected(items=for_one_schedule)
        items[:] = [item for item in items if item not in for_one_schedule]
