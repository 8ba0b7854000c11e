"""What int8 would save: the bundled trunk's convolutions in three precisions, side by side.

    python benchmarks/convolutions.py

Eight bits need their numbers scaled and rounded before a convolution and brought back after it, since
norms and activations between them stay floating point: those times are printed beside it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from statistics import median

import torch
from measuring import timed

SHAPES = ((32, 256), (64, 128), (96, 64), (128, 32))
"""Widths of the trunk's levels and sides of their maps, of a slice of 512 x 512 pixels."""
SCALE, ZERO = 0.05, 64
REPEATS = 30
CPU = torch.device("cpu")


def median_ms(work: Callable[[], object]) -> float:
    """Median time of a call in milliseconds."""
    return 1e3 * median(timed(CPU, work)[0] for _ in range(REPEATS))


def measure(width: int, side: int) -> dict[str, float]:
    """Times of a 3 x 3 convolution between maps of one width."""
    conv = torch.nn.Conv2d(width, width, 3, padding=1)
    conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(1, width, side, side).to(memory_format=torch.channels_last)
    eight = torch.ao.nn.quantized.Conv2d(width, width, 3, padding=1)
    scales, zeros = torch.full((width,), 0.01), torch.zeros(width, dtype=torch.long)
    weight = torch.quantize_per_channel(conv.weight, scales, zeros, 0, torch.qint8)
    eight.set_weight_bias(weight, conv.bias)
    eight.scale, eight.zero_point = SCALE, ZERO
    rounded = torch.quantize_per_tensor(x, SCALE, ZERO, torch.quint8)
    found = {"float32": median_ms(lambda: conv(x))}
    half, y = conv.to(torch.bfloat16), x.bfloat16()
    found["bfloat16"] = median_ms(lambda: half(y))
    found["int8"] = median_ms(lambda: eight(rounded))
    answer = eight(rounded)
    found["there"] = median_ms(lambda: torch.quantize_per_tensor(x, SCALE, ZERO, torch.quint8))
    found["back"] = median_ms(answer.dequantize)
    return found


def main() -> None:
    """Print a line a level."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    warnings.simplefilter("ignore")  # torch.ao is on its way out
    torch.backends.quantized.engine = "onednn"
    with torch.inference_mode():
        for width, side in SHAPES:
            times = "  ".join(f"{name} {ms:.2f}" for name, ms in measure(width, side).items())
            print(f"{width} channels, {side} x {side}: {times} ms")


if __name__ == "__main__":
    main()
