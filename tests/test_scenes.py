"""Surfaces in 3-D: what is drawn in which colour, in what order, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from etsam import scenes
from etsam.drawing import round_length
from etsam.panels import EXTRA, FOUND, MISSED
from etsam.scenes import View, surface_panels
from etsam.volume import tomogram_from_array

Run = Callable[..., tuple[int, str, str]]


def ball(centre: float, radius: float = 7.0) -> np.ndarray:
    z, y, x = np.mgrid[:20, :24, :48]
    return np.hypot(np.hypot(z - 10, y - 12), x - centre) < radius


def areas(figure: object, panel: int) -> dict[str, int]:
    """Count the triangles of each colour by hue: shading and fog keep its direction from white."""
    painted = figure.axes[panel].collections[0]  # type: ignore[attr-defined]
    colours = painted.get_facecolors()[:, :3]
    names = {"found": FOUND, "extra": EXTRA, "missed": MISSED, "true": scenes.TRUE}
    hues = np.array([np.array(to_rgb(colour)) for colour in names.values()])
    hues = hues - hues.mean(axis=1, keepdims=True)
    given = colours - colours.mean(axis=1, keepdims=True)
    size = np.linalg.norm(given, axis=1)
    unit = hues / np.maximum(np.linalg.norm(hues, axis=1, keepdims=True), 1e-9)
    nearest = np.where(size < 1e-6, 3, (given @ unit[:3].T).argmax(axis=1))
    return {name: int(np.sum(nearest == number)) for number, name in enumerate(names)}


def test_found_extra_and_missed_get_their_colours() -> None:
    truth = (ball(12) | ball(34)).astype(np.int8)
    mask = (ball(12) | ball(25, 3)).astype(np.int8)  # one ball found, one missed, a blob too many
    volumes = [tomogram_from_array(data, voxel_spacing=10.0) for data in (truth, mask)]
    figure = surface_panels(volumes[0], [("mine", volumes[1], 0.0), ("same", volumes[0], 0.0)])
    whole, mine, same = (areas(figure, panel) for panel in range(3))
    assert whole["true"] == sum(whole.values())
    assert mine["missed"] == pytest.approx(whole["true"] / 2, rel=0.1)
    assert mine["found"] == pytest.approx(whole["true"] / 2, rel=0.1)
    assert 0 < mine["extra"] < 0.3 * mine["found"]
    assert same["found"] == sum(same.values()) == whole["true"]
    assert [axes.get_title() for axes in figure.axes] == ["ground truth", "mine", "same"]


def test_what_nobody_annotated_is_left_out_and_an_empty_mask_is_all_missed() -> None:
    truth = ball(12).astype(np.int8)
    truth[:, :, 26:] = -1
    like = tomogram_from_array(truth, voxel_spacing=10.0)
    beyond = tomogram_from_array(ball(38).astype(np.int8), voxel_spacing=10.0)
    for masks in ([("elsewhere", beyond, 0.0)], [("nothing", beyond, 5.0)]):
        counts = areas(surface_panels(like, masks), 1)
        assert counts["missed"] == sum(counts.values()) > 0


def test_near_triangles_are_painted_last_and_a_cut_leaves_the_far_half() -> None:
    truth = tomogram_from_array(ball(24).astype(np.int8), voxel_spacing=10.0)
    mesh = scenes._body(truth, lambda z: truth.read_slice(z) == 1).mesh
    assert mesh is not None
    axes = View(90.0, -90.0).axes()  # from above: x to the right, y up
    assert np.allclose(axes, np.eye(3), atol=1e-12)
    assert np.linalg.det(View(31.0, 17.0).axes()) == pytest.approx(1)
    depths = (float(mesh.vertices[:, 2].min()), float(mesh.vertices[:, 2].max()))
    both = [scenes._shaded([(mesh, "gray")], axes, depths, cutaway=cut)[0] for cut in (False, True)]
    assert len(both[1]) == pytest.approx(len(both[0]) / 2, rel=0.15)
    last = both[0][-20:].mean(axis=(0, 1))  # the top of the ball
    assert last == pytest.approx([240, 120], abs=15)


def test_large_volumes_are_binned_and_thin_walls_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SIDE", 24)
    wall = np.zeros((20, 24, 48), np.int8)
    wall[:, 11, :] = 1  # one voxel thick, after binning by 2 still whole
    like = tomogram_from_array(wall, voxel_spacing=10.0)
    body = scenes._body(like, lambda z: like.read_slice(z) == 1)
    assert body.distance.shape == (10, 12, 24)
    assert body.mesh is not None
    assert body.mesh.vertices[:, 1].mean() == pytest.approx(100, abs=10)  # Å: of binned voxel 5


def test_round_lengths() -> None:
    assert [round_length(wanted) for wanted in (1.0, 3.9, 49.0, 260.0)] == [1, 2, 20, 200]


def test_the_command_and_what_it_refuses(tmp_path: Path, run: Run) -> None:
    for name, data in (
        ("a_gt", ball(24)),
        ("a_x", ball(25)),
        ("b", ball(24)[1:]),
        ("c", ball(0, 0)),
    ):
        with mrcfile.new(tmp_path / f"{name}.mrc") as mrc:
            mrc.set_data(data.astype(np.int8))
            mrc.voxel_size = 10.0
    truth, mask, output = tmp_path / "a_gt.mrc", tmp_path / "a_x.mrc", tmp_path / "new" / "s"
    code, out, err = run("figures", "surfaces", truth, "-m", f"x={mask}", "-o", output, "--cutaway")
    assert code == 0, err
    assert out.split() == [f"{output}.pdf", f"{output}.png"]
    assert output.with_suffix(".pdf").read_bytes()[-6:].strip() == b"%%EOF"
    for args, part in (
        ((truth, "-m", tmp_path / "b.mrc"), "b has shape (19, 24, 48)"),
        ((tmp_path / "c.mrc", "-m", mask), "holds no membrane"),
        ((tmp_path / "none.mrc",), "does not exist"),
    ):
        code, _, err = run("figures", "surfaces", *args)
        assert (code, err.count("\n")) == (1, 1)
        assert part in err
