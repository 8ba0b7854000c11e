"""Linear layers with weights rearranged for the CPU, against PyTorch's own."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2 import linear
from etsam.sam2.linear import (
    ACTIVATIONS,
    Activation,
    Linear,
    keep_rearranged,
    multiply,
    pack,
    packs,
)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def exactly(layer: nn.Linear, x: Tensor, activation: Activation) -> Tensor:
    """The layer in double precision."""
    assert layer.bias is not None
    return ACTIVATIONS[activation](F.linear(x.double(), layer.weight.double(), layer.bias.double()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (1, 4, 4, 24), (0, 24)])
def test_as_exact_as_the_type(
    dtype: torch.dtype, activation: Activation, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = Linear(24, 40).to(dtype)
    x = torch.randn(shape).to(dtype)
    with torch.no_grad():
        found = layer(x, activation)
        assert found.dtype == dtype and found.shape == (*shape[:-1], 40)
        expected = exactly(layer, x, activation)
        assert torch.allclose(
            found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def test_rows_that_are_not_contiguous() -> None:
    x = torch.randn(3, 24, 5).transpose(1, 2)
    layer = Linear(24, 40)
    with torch.no_grad():
        assert torch.allclose(layer(x).double(), exactly(layer, x, "none"), atol=1e-5)


def test_gradients_are_those_of_the_layer() -> None:
    layer, x = Linear(6, 4), torch.randn(3, 6, requires_grad=True)
    assert not packs(x)
    layer(x, "relu").sum().backward()
    plain, y = nn.Linear(6, 4), x.detach().clone().requires_grad_()
    plain.load_state_dict(layer.state_dict())
    F.relu(plain(y)).sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad) and torch.equal(x.grad, y.grad)


def test_weights_that_change_are_rearranged_anew() -> None:
    """In place, read from a file, in another type and back, replaced."""
    layer, other = Linear(24, 40).bfloat16(), nn.Linear(24, 40)
    x = torch.randn(5, 24).bfloat16()

    def holds() -> None:
        with torch.no_grad():
            expected = exactly(layer, x, "none")
            assert torch.allclose(layer(x).double(), expected, rtol=0.01, atol=0.01)

    holds()
    with torch.no_grad():
        layer.weight.mul_(2)
    holds()
    layer.load_state_dict(other.state_dict())
    holds()
    layer.float()
    with torch.no_grad():
        layer.weight.neg_()
    layer.bfloat16()
    holds()
    layer.weight = nn.Parameter(torch.randn(40, 24).bfloat16())
    holds()


def test_copies_and_files_hold_the_weights_alone() -> None:
    layer, x = Linear(24, 40).bfloat16(), torch.randn(5, 24).bfloat16()
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), expected)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    assert sorted(layer.state_dict()) == ["bias", "weight"]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (1, 4, 4, 24), (0, 24)])
def test_rearranged_weights_are_as_exact(
    dtype: torch.dtype, activation: Activation, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = Linear(24, 40).to(dtype)
    x = torch.randn(shape).to(dtype)
    with torch.no_grad():
        expected = exactly(layer, x, activation)
        layer.keep_rearranged()
        found = layer(x, activation)
        assert found.dtype == dtype and found.shape == (*shape[:-1], 40)
        assert torch.allclose(
            found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_weights_that_are_kept_once(dtype: torch.dtype) -> None:
    """The same answers without the weights as they were; no copy that would lack them."""
    network = nn.Sequential(Linear(24, 40), nn.Sequential(Linear(40, 8, bias=False))).to(dtype)
    x = torch.randn(5, 24).to(dtype)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for layer in (twin[0], twin[1][0]):
            layer.keep_rearranged()
        expected = twin(x)
        keep_rearranged(network)
        assert torch.equal(network(x), expected)
        if packs(x) and dtype is torch.bfloat16:
            assert [name for name, _ in network.named_parameters()] == ["0.bias"]
            with pytest.raises(TypeError, match="cannot be copied"):
                copy.deepcopy(network)


def test_where_there_is_no_such_product(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(24, 40).bfloat16(), torch.randn(5, 24).bfloat16()
    with torch.no_grad():
        fast = layer(x, "gelu")
        monkeypatch.setattr(linear, "_packed_types", lambda: ())
        assert not packs(x)
        assert torch.allclose(layer(x, "gelu"), fast, rtol=0.01, atol=0.01)


def test_product_without_a_bias() -> None:
    x, matrix = torch.randn(7, 16), torch.randn(9, 16)
    with torch.no_grad():
        if not packs(x):
            pytest.skip("this processor, or this PyTorch, has no such product")
        assert torch.allclose(multiply(x, pack(matrix)), x @ matrix.T, atol=1e-5)
