"""Imports a build with CUDA kernels and runs the op on the CPU: python python_tests/csrc/import_with_cuda.py FOLDER

FOLDER is that of `pip install --target FOLDER -C cmake.define.BICO_CUDA=ON .`
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import torch
import bico_ext._C as _C
from bico_ext.ops.attention import split_triangle_attention
from bico_ext.ops.backends import refusal
assert _C.cuda_kernels and refusal("compiled", "cuda") is None, "built without CUDA"
q = torch.randn(1, 2, 5, 8)
out = split_triangle_attention(q, q, q, torch.ones(1, 5, 8), torch.zeros(1, 5, 8))
expected = torch.nn.functional.scaled_dot_product_attention(q, q, q)
torch.testing.assert_close(out, expected)
print(f"CUDA kernels by nvcc {_C.cuda_kernels}; torch {torch.__version__}, CUDA available: {torch.cuda.is_available()}")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    # -S leaves out the .pth files of site-packages, among them the one of an editable installation.
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *others])}
    command = [sys.executable, "-S", "-c", PROGRAM]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
