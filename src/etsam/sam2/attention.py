"""Work in parts that a CPU's cache holds; scaled dot-product attention in such parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROOM = 1 << 24
"""Bytes held at a time. Smaller parts are slower, larger ones leave the cache and, from 32 MB, are memory
that the system hands out anew each time."""


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, numbers: int) -> Tensor:
    """Apply a function that takes the entries of ``x`` one by one, a few of them at a time.

    ``numbers`` are what one entry needs. On other devices, and while training, all go at once.
    """
    most = max(1, ROOM // (numbers * x.element_size()))
    if x.device.type != "cpu" or torch.is_grad_enabled() or len(x) <= most:
        return function(x)
    return torch.cat([function(part) for part in torch.split(x, most)])


def in_blocks(query: Tensor) -> bool:
    """Whether `attend` goes block by block: bfloat16 on a CPU, and nothing to differentiate."""
    return (
        query.device.type == "cpu" and query.dtype is torch.bfloat16 and not torch.is_grad_enabled()
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax of scaled products of (b, h, n, d) queries and (b, h, m, d) keys, times the values.

    Values are (b, h, m, e); returns (b, h, n, e). PyTorch's kernel for CPUs takes 1.4 to 2.7
    times as long in bfloat16 as the same products by its matrix product, and wants e = d. Under
    autocast keys and values may be float32 still, such as memories that are not projected first.
    """
    if not in_blocks(query):
        return F.scaled_dot_product_attention(query, key, value)
    batch, heads, n, width = query.shape
    most = ROOM // query.element_size()
    m = key.shape[2]
    queries = (query * width**-0.5).reshape(-1, n, width)
    keys = key.to(query.dtype).reshape(-1, m, width).transpose(1, 2)
    values = value.to(query.dtype).reshape(-1, m, value.shape[3])
    out: Tensor = queries.new_empty(len(queries), n, values.shape[2])
    rows = min(n, max(1, most // m))
    maps = max(1, most // (n * m))
    room = queries.new_empty(min(maps, len(queries)) * rows * m)
    for first in range(0, len(queries), maps):
        some = slice(first, first + maps)
        for row in range(0, n, rows):
            asking = queries[some, row : row + rows]
            scores = room[: asking.shape[0] * asking.shape[1] * m].view(*asking.shape[:2], m)
            torch.bmm(asking, keys[some], out=scores)
            torch.softmax(scores, dim=-1, out=scores)
            torch.bmm(scores, values[some], out=out[some, row : row + rows])
    return out.view(batch, heads, n, -1)
