"""Linear layers, and products with one matrix many times, as fast as a CPU does them."""

from __future__ import annotations

import platform
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["none", "relu", "gelu"]
LAYER_TYPES = (torch.bfloat16,)
"""Types in which linear layers are so multiplied. In float32 oneDNN is faster too, but rounds more than MKL: the
object pointer of a prompted slice of base-plus then differs from double precision by 2e-4 instead of 3e-5."""
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


def packs(x: Tensor) -> bool:
    """Whether oneDNN multiplies ``x`` by matrices in a layout of its own: x86 CPUs, nothing to differentiate."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and x.dtype in _packed_types()


@cache
def _packed_types() -> tuple[torch.dtype, ...]:
    """What this processor and this build of PyTorch can so multiply."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return ()
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return (torch.float32, *LAYER_TYPES)
    return (torch.float32,)


def pack(weight: Tensor) -> Tensor:
    """A matrix (m, d) as `multiply` wants it: rearranging it once pays where rows come in several parts."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed


def multiply(
    x: Tensor, packed: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    """Rows (..., d) times a `pack`-ed matrix (m, d), plus the bias (m,), activated: (..., m)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")
    return product


class Linear(nn.Linear):
    """``nn.Linear`` with its activation, which may keep its weights as `multiply` wants them.

    In bfloat16, where PyTorch's own way takes 1.1 to 1.4 times as long (AMD EPYC) and rounds twice.
    """

    _packed: Tensor | None = None

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        if self._packed is not None:
            return multiply(x.to(self._packed.dtype), self._packed, self.bias, activation)
        out: Tensor = ACTIVATIONS[activation](super().forward(x))
        return out

    def keep_rearranged(self) -> None:
        """Let go of the weights but as they are rearranged, if this machine does so: only to infer with from now on."""
        with torch.no_grad():
            if packs(self.weight) and self.weight.dtype in LAYER_TYPES:
                self._packed = pack(self.weight)
                self.register_parameter("weight", None)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or stored.

        Raises
        ------
        TypeError
            Only rearranged weights are left, which cannot be.
        """
        if self._packed is not None:
            raise TypeError("a network that keeps only rearranged weights cannot be copied")
        return self.__dict__


def keep_rearranged(network: nn.Module) -> None:
    """Hold the weights of linear layers once: rearranged, where this machine multiplies by such.

    Such a network can only infer, in the type and on the device it has.
    """
    for layer in network.modules():
        if isinstance(layer, Linear):
            layer.keep_rearranged()
