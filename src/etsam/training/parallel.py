"""Several processes that train one network, as torchrun starts them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from etsam.stages import choose_device


@dataclass(frozen=True)
class Team:
    """This process among those that train together; process 0 alone writes."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """This process's clips of a batch."""
        return range(self.rank, batch, self.size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The same module, whose gradients become the mean over all processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=True)

    def mean(self, value: Tensor) -> float:
        """The mean of a number over all processes."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value.item() / self.size

    def any(self, asked: bool) -> bool:
        """Whether it is so in any of the processes."""
        if self.size == 1:
            return asked
        return self.mean(torch.tensor(float(asked), device=self.device)) > 0

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def said_once() -> Iterator[None]:
    """Keep warnings to the first process, before and after it joins the others."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def join(device: str) -> Iterator[Team]:
    """Join the processes torchrun started, or be alone; device as in `choose_device`.

    On several GPUs each process takes the one of its local rank.

    Raises
    ------
    ValueError
        There is no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if size == 1:
        yield Team(chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    starts = not distributed.is_initialized()
    if starts:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        with warnings.catch_warnings():
            # said of kernels of one pixel, whose strides mean nothing
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield Team(chosen, distributed.get_rank(), size)
    finally:
        if starts:
            distributed.destroy_process_group()
