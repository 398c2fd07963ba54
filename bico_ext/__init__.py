"""bico-ext: split-triangle RoPE attention and mask denoising against the reversal curse.

`split_triangle_attention` is the op, `attach` plugs it into a Hugging Face Llama, `BicoTrainer` trains with it,
`evaluate` asks in both directions.
"""

from typing import TYPE_CHECKING, Any

from bico_ext.ops.attention import split_triangle_attention

if TYPE_CHECKING:
    from bico_ext.evaluation import evaluate as evaluate
    from bico_ext.generation import generate as generate
    from bico_ext.models.attach import attach as attach
    from bico_ext.models.attach import check_attached as check_attached
    from bico_ext.models.attach import detach as detach
    from bico_ext.training.config import BicoConfig as BicoConfig
    from bico_ext.training.trainer import BicoTrainer as BicoTrainer

# Imported when first asked for: the op alone must not cost the seconds that transformers takes to import.
_HOMES = {
    "BicoConfig": "training.config",
    "BicoTrainer": "training.trainer",
    "attach": "models",
    "check_attached": "models",
    "detach": "models",
    "evaluate": "evaluation",
    "generate": "generation",
}
__all__ = ["split_triangle_attention", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
