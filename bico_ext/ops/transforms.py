"""Which transforms of torch the backends cannot go through, and the refusal of those.

torch asks a custom op for its forward-mode derivative and, if it has none, takes 0 without a word.
"""

import torch
from torch import Tensor
from torch._C._functorch import TransformType, is_legacy_batchedtensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd.forward_ad import unpack_dual

# By what torch pushes on its stack. Several functions push the same.
DERIVATIVES = {
    TransformType.Grad: "torch.func.grad, vjp and jacrev",
    TransformType.Jvp: "torch.func.jvp, jacfwd and hessian",
}
OTHERS = {
    TransformType.Vmap: "torch.vmap and batched gradients",
    TransformType.Functionalize: "torch.func.functionalize",
}


def refuse(transforms: dict[TransformType, str], *tensors: Tensor) -> None:
    """Raise an error within any of these transforms, and if a tensor is part of one that needs no function around it.

    Raises:
        NotImplementedError: it names the transform and two ways out.

    Example:
        >>> def within(x):
        ...     refuse(DERIVATIVES)
        ...     return x.sum()
        >>> try:
        ...     torch.func.grad(within)(torch.ones(2))
        ... except NotImplementedError as error:
        ...     print(str(error)[:66])
        split_triangle_attention cannot go through torch.func.grad, vjp an
    """
    name = _active(tuple(transforms))
    if name is None and not torch.compiler.is_compiling():
        if any(is_legacy_batchedtensor(x) for x in tensors):  # torch.autograd.grad(is_grads_batched=True)
            name = OTHERS[TransformType.Vmap]
        elif any(unpack_dual(x).tangent is not None for x in tensors):
            name = "forward-mode AD"
    if name is not None:
        raise NotImplementedError(
            f"split_triangle_attention cannot go through {name}; use torch.autograd.grad or backward(), or call "
            "bico_ext.ops.reference.split_triangle_attention, which takes every transform, but holds the score matrix"
        )


@torch.compiler.assume_constant_result  # while torch.compile traces, the stack is there, too
def _active(transforms: tuple[TransformType, ...]) -> str | None:
    keys = [interpreter.key() for interpreter in retrieve_all_functorch_interpreters()]
    return next((name for key, name in (DERIVATIVES | OTHERS).items() if key in keys and key in transforms), None)
