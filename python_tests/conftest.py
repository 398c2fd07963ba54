"""Which devices the op's tests run on: `--device cpu --device emulated-cuda ...`; default: all that there are."""

import devices
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        action="append",
        choices=list(devices.EVERY),
        help="where the op's tests run; default: wherever they can",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "attention" in metafunc.fixturenames:
        names = metafunc.config.getoption("--device") or devices.present()
        metafunc.parametrize("attention", [devices.EVERY[name] for name in names], ids=names)
