"""Work in parts that a CPU's cache holds; scaled dot-product attention in such parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from etsam.sam2.linear import multiply, pack, packs

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


def in_blocks(query: Tensor, *, narrow: bool) -> bool:
    """Whether `attend` goes block by block: on a CPU, with nothing to differentiate, where it is faster.

    That is in bfloat16, and in float32 where values are ``narrow``-er than keys.
    """
    if query.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return query.dtype is torch.bfloat16 or (narrow and packs(query))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax of scaled products of (b, h, n, d) queries and (b, h, m, d) keys, times the values.

    Values are (b, h, m, e); returns (b, h, n, e). PyTorch's kernel for CPUs takes 1.4 to 2.7
    times as long in bfloat16 as the same products by its matrix product, and wants e = d. Under
    autocast keys and values may be float32 still, such as memories that are not projected first.
    """
    if not in_blocks(query, narrow=value.shape[3] < key.shape[3]):
        return F.scaled_dot_product_attention(query, key, value)
    batch, heads, n, width = query.shape
    queries = (query * width**-0.5).reshape(-1, n, width)
    keys = key.to(query.dtype).reshape(-1, key.shape[2], width)
    values = value.to(query.dtype).reshape(-1, *value.shape[2:])
    out: Tensor = queries.new_empty(len(queries), n, values.shape[2])
    maps = ROOM // (query.element_size() * n * keys.shape[1])
    if maps > 1:
        for parts in zip(
            *(whole.split(maps) for whole in (queries, keys, values, out)), strict=True
        ):
            _attend_whole(*parts)
    else:
        for one in zip(queries, keys, values, out, strict=True):
            _attend_by_rows(*one)
    return out.view(batch, heads, n, -1)


def _attend_whole(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """Attention within each of some maps: (b, n, d), (b, m, d), (b, m, e) -> (b, n, e)."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    torch.softmax(scores, dim=-1, out=scores)
    torch.bmm(scores, values, out=out)


def _attend_by_rows(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """Attention within one map, so many queries at a time: (n, d), (m, d), (m, e) -> (n, e)."""
    rows = max(1, ROOM // (queries.element_size() * len(keys)))
    packed = pack(keys) if packs(queries) else None
    for asking, answers in zip(queries.split(rows), out.split(rows), strict=True):
        scores = asking @ keys.T if packed is None else multiply(asking, packed)
        torch.softmax(scores, dim=-1, out=scores)
        torch.mm(scores, values, out=answers)
