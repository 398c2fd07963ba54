"""What the compiled build-information module offers, for type checkers."""

version: str
compiler: str
built_with_torch: str
cuda_kernels: str
sanitized: bool
emulates_amx: bool

def instruction_sets() -> dict[str, bool]: ...
def chosen_instruction_set() -> str: ...
def why_chosen() -> str: ...
