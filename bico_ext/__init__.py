"""bico-ext: split-triangle RoPE attention and mask denoising against the reversal curse.

`split_triangle_attention` is the op, `attach` plugs it into a Hugging Face Llama, and `BicoTrainer` trains with it.
`load_facts` reads facts, and `evaluate` tests whether a model knows them in both directions.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bico_ext.evaluation.evaluate import evaluate as evaluate
    from bico_ext.facts.loader import load_facts as load_facts
    from bico_ext.generation.greedy import generate as generate
    from bico_ext.generation.infilling import generate_infill as generate_infill
    from bico_ext.models.attach import attach as attach
    from bico_ext.models.attach import check_attached as check_attached
    from bico_ext.models.attach import detach as detach
    from bico_ext.ops.attention import split_triangle_attention as split_triangle_attention
    from bico_ext.training.config import BicoConfig as BicoConfig
    from bico_ext.training.trainer import BicoTrainer as BicoTrainer

    __version__: str

# Modules are imported when a name is first used (PEP 562). torch and transformers take seconds to import, which
# the readers and the reports need not wait for.
_MODULES = {
    "BicoConfig": "training.config",
    "BicoTrainer": "training.trainer",
    "attach": "models.attach",
    "check_attached": "models.attach",
    "detach": "models.attach",
    "evaluate": "evaluation.evaluate",
    "generate": "generation.greedy",
    "generate_infill": "generation.infilling",
    "load_facts": "facts.loader",
    "split_triangle_attention": "ops.attention",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("bico-ext")
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
