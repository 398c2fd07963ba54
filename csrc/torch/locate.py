"""Prints folder, version and CUDA (1 or 0) of the installed torch for CMake, without the seconds of importing it."""

import importlib.metadata
import importlib.util
import pathlib
import sys

OLDEST = (2, 11)


def main() -> None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "bico-ext compiles against the torch that is installed, and there is none: install torch >= 2.11 first "
            "(pip install torch), then pip install --no-build-isolation ."
        )
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < OLDEST:
        sys.exit(f"bico-ext needs torch >= 2.11, found {version}: pip install --upgrade torch")
    folder = pathlib.Path(spec.origin).parent
    sys.stdout.write(f"{folder};{version};{int((folder / 'lib' / 'libtorch_cuda.so').exists())}\n")


main()
