"""What the compiled build-information module offers, for type checkers."""

version: str
compiler: str
built_with_torch: str
kernels: str

def cpu_features() -> dict[str, bool]: ...
