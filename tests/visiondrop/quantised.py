"""8-bit stand-ins for the linear layers of quantising packages, and models made of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.visiondrop.models import tiny


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of integers from -127 to 127 and their scales [rows, 1]."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """Integers are the parameter, as in bitsandbytes; it is no `nn.Linear`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        values, scale = to_int8(linear.weight.detach())
        self.weight = nn.Parameter(values, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def dequantised(self) -> Tensor:
        return self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantised(), self.bias)


class PackedLinear(nn.Module):
    """No parameters at all, and `weight` is a method, as in torch's own dynamic quantisation."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self._packed = (*to_int8(linear.weight.detach()), linear.bias)

    def weight(self) -> Tensor:
        return self._packed[0] * self._packed[1]

    def dequantised(self) -> Tensor:
        return self.weight()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight(), self._packed[2])


KINDS: dict[str, Any] = {"int8": Int8Linear, "packed": PackedLinear}


def replaced(model: Any, make: Any, kind: type = nn.Linear) -> Any:
    """A copy of a model with `make(module)` for each `kind` of module of its decoder."""
    model = copy.deepcopy(model)
    for module in list(model.model.language_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, name, make(child))
    return model


def plain(quantised: Any) -> nn.Linear:
    """The float layer with the weights that a quantised one stands for."""
    weight = quantised.dequantised()
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    out.weight = nn.Parameter(weight, requires_grad=False)
    out.bias = quantised._packed[2] if isinstance(quantised, PackedLinear) else quantised.bias
    return out


def pair(kind: str, **family: Any) -> tuple[Any, Any]:
    """A tiny model with quantised linear layers, and the float model that it stands for."""
    small = replaced(tiny(**family), KINDS[kind])
    return small, replaced(small, plain, KINDS[kind])
