"""Files of others: the same network under other names and entries, or one line that says what to do."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from etsam.sam2 import SAM2, load_checkpoint
from test_checkpoint import refusal
from test_hostile_checkpoints import published
from tiny_training import TINY_SAM2

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return SAM2(TINY_SAM2).state_dict()


def before(prefix: str) -> Callable[[State], Any]:
    return lambda state: {"model": {prefix + name: value for name, value in state.items()}}


def compiled_encoder(state: State) -> Any:
    return {name.replace("encoder.", "encoder._orig_mod.", 1): x for name, x in state.items()}


def same(model: SAM2, state: State) -> bool:
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize(
    "layout",
    [
        dict,
        OrderedDict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "loss": [0.1]},
        lambda state: before("module.")(state)["model"],
        compiled_encoder,
        *map(before, ("module.", "_orig_mod.", "model.", "sam2_model.", "module.net.sam2.")),
    ],
)
def test_a_network_is_read_from_where_others_keep_it(
    state: State, tmp_path: Path, layout: Callable[[State], Any]
) -> None:
    torch.save(layout(state), tmp_path / "a.pt")
    assert same(load_checkpoint(tmp_path / "a.pt", TINY_SAM2)[0], state)


@pytest.mark.parametrize("shared_out", [False, True])
def test_an_averaged_network_is_read(state: State, tmp_path: Path, shared_out: bool) -> None:
    """Beside it torch counts what it is the mean of; such a name of another program is none of a network."""
    network = SAM2(TINY_SAM2)
    network.load_state_dict(state)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99)).state_dict()
    if shared_out:
        averaged = before("module.")(averaged)["model"]
    torch.save({"model": averaged}, tmp_path / "a.pt")
    assert same(load_checkpoint(tmp_path / "a.pt", TINY_SAM2)[0], state)
    torch.save(state | {"n_averaged": torch.tensor(3)}, tmp_path / "b.pt")
    assert "1 unexpected, e.g. n_averaged" in refusal(tmp_path / "b.pt", TINY_SAM2)


def test_another_network_is_told_by_its_names(state: State, tmp_path: Path) -> None:
    """Rather than by what kind of numbers there is in it."""
    path = tmp_path / "a.pt"
    other = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.BatchNorm3d(8)).state_dict()
    torch.save({"state_dict": other}, path)
    assert "is not a SAM 2.1 checkpoint: it has no" in refusal(path)
    torch.save(state | {"head.num_batches_tracked": torch.tensor(0)}, path)
    assert "1 unexpected, e.g. head.num_batches_tracked" in refusal(path, TINY_SAM2)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors_of_others_are_read_as_pt_is(state: State, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(before(prefix)(state)["model"], path, {"format": "pt"})
    assert "a.json" in refusal(path)
    path.with_suffix(".json").write_text(json.dumps(TINY_SAM2.to_dict()))
    model, metadata = load_checkpoint(path)
    assert same(model, state) and model.config == TINY_SAM2 and metadata == {}


@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state}, before("model.")])
def test_names_stay_strict(state: State, tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    path = tmp_path / "a.pt"
    torch.save(wrap(state | {"lora.weight": torch.zeros(2)}), path)
    assert "1 unexpected, e.g. lora.weight" in refusal(path, TINY_SAM2)
    torch.save(wrap({name: x for name, x in state.items() if name != "no_obj_ptr"}), path)
    assert "1 missing, e.g. no_obj_ptr" in refusal(path, TINY_SAM2)


def test_two_networks_in_one_are_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(before("student.")(state)["model"] | before("teacher.")(state)["model"], path)
    assert "more than one network" in refusal(path, TINY_SAM2)
    torch.save({"module.no_obj_ptr": torch.ones(1, 32)} | state, path)
    assert "more than one network" in refusal(path, TINY_SAM2)


def test_files_that_cannot_be_read_say_what_to_do(state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"no_memory_embedding": torch.zeros(1, 1, 32)}, path)
    assert "transformers" in refusal(path) and "weights fetch" in refusal(path)
    torch.save({"model": state, "lr": np.float64(1e-5)}, path)
    assert "scalar" in refusal(path) and "torch.save(network.state_dict()" in refusal(path)
    for modern in (True, False):
        path = tmp_path / "b.safetensors"
        torch.save(state, path, _use_new_zipfile_serialization=modern)
        assert "in PyTorch's format: give it the ending .pt" in refusal(path)
    save_file({"no_memory_embedding": torch.zeros(1, 1, 32)}, path)
    assert "transformers" in refusal(path)


def test_what_does_not_fit_names_the_network_it_was_compared_with(tmp_path: Path) -> None:
    path = published(tmp_path / "stage1.pt", lora=torch.zeros(1))
    told = "does not fit the network SAM 2.1 tiny (other sizes go into stage1.json beside it)"
    assert f"{told}: 1 unexpected, e.g. lora" in refusal(path)
    path.with_suffix(".json").write_text('{"embed_dim": 112}')
    assert "of the sizes in stage1.json (mend or remove it)" in refusal(path)
