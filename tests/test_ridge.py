"""The ridge filter: sheets against other shapes, invariances, seams, and its command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.baselines import ridge
from etsam.baselines.ridge import RidgeOptions, ridge_features, ridge_slices
from etsam.metrics import ScoreHistogram, confusion
from etsam.volume import open_tomogram, tomogram_from_array

Run = Callable[..., tuple[int, str, str]]

SMALL = RidgeOptions(scales=(12.0,), votes=15.0)


def vesicle(
    shape: tuple[int, int, int] = (24, 48, 52), noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """A dark shell 3 voxels thick in noise, and its mask."""
    z, y, x = np.indices(shape)
    radius = np.sqrt((z - 12) ** 2 + (y - 24) ** 2 + (x - 24) ** 2)
    mask = np.abs(radius - 16) < 1.5
    volume = np.random.default_rng(0).normal(0, noise, shape) - mask
    return volume.astype(np.float32), mask


def logits(volume: np.ndarray, options: RidgeOptions = SMALL, spacing: float = 10.0) -> np.ndarray:
    return np.stack(list(ridge_slices(tomogram_from_array(volume, voxel_spacing=spacing), options)))


def test_eigenvalues_are_numpys() -> None:
    tensors = np.random.default_rng(1).normal(size=(500, 3, 3))
    tensors = tensors + tensors.transpose(0, 2, 1)
    tensors[:3] = np.eye(3), np.zeros((3, 3)), np.diag([2, 2, -1])
    parts = [
        tensors[:, a, b].astype(np.float32)
        for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    ]
    found = np.stack(ridge._eigenvalues(parts), -1)
    assert np.allclose(found, np.linalg.eigvalsh(tensors)[:, ::-1], atol=2e-3)


def test_a_shell_in_noise_is_found() -> None:
    volume, mask = vesicle(noise=0.9)
    histogram = ScoreHistogram()
    found = logits(volume)
    histogram.add(found, mask)
    assert histogram.curve().average_precision > 0.7
    raw = ScoreHistogram()
    raw.add(-volume, mask)
    assert histogram.curve().average_precision > 1.5 * raw.curve().average_precision
    assert confusion(logits(-volume) > 0, mask).recall < 0.5  # bright: not without invert


def test_sheets_before_rods_and_balls() -> None:
    z, y, x = np.indices((24, 24, 24)) - 12
    strengths = {}
    for name, distance in (
        ("sheet", np.abs(y)),
        ("rod", np.hypot(y, x)),
        ("ball", np.sqrt(z**2 + y**2 + x**2)),
    ):
        volume = -np.exp(-(distance**2) / 4.0).astype(np.float32)
        noise = np.random.default_rng(2).normal(0, 0.02, volume.shape).astype(np.float32)
        features = ridge.Features(*_raw(volume + noise))
        strengths[name] = features.ridge[12, 12, 12]
    assert strengths["sheet"] > 3 * strengths["rod"]
    assert strengths["sheet"] > 3 * strengths["ball"]


def _raw(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tomogram = tomogram_from_array(volume, voxel_spacing=10.0)
    whole = (slice(0, 24), slice(0, 24), slice(0, 24))
    found = ridge._RidgeFilter(tomogram, SMALL).features(whole, (1.0, 1.0))
    return found.ridge, found.votes


def test_curvature_is_per_length_not_per_voxel() -> None:
    """A quadratic form of places in Å has its own matrix, whatever the voxels are."""
    matrix = np.array([[2.0, 0.5, -0.3], [0.5, -1.0, 0.7], [-0.3, 0.7, 1.5]])
    spacing = (20.0, 10.0, 15.0)
    places = (np.indices((7, 8, 9)).reshape(3, -1).T - 3) * spacing
    form = np.einsum("ni,ij,nj->n", places, matrix, places).reshape(7, 8, 9) / 2
    found = ridge._hessian(form.astype(np.float32), spacing)
    wanted = [matrix[a, b] for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
    inner = np.stack(found)[:, 1:-1, 1:-1, 1:-1] / min(spacing) ** 2
    assert np.allclose(inner, np.reshape(wanted, (6, 1, 1, 1)), atol=1e-3)


@pytest.mark.parametrize("spacing", [(10.0, 10.0, 10.0), (20.0, 10.0, 10.0), (10.0, 20.0, 20.0)])
def test_all_sides_of_a_vesicle_count_alike(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    shape = tuple(int(600 / step) for step in spacing)
    middle = [(side - 1) / 2 * step for side, step in zip(shape, spacing, strict=True)]
    z, y, x = (
        place * step - centre
        for place, step, centre in zip(np.indices(shape), spacing, middle, strict=True)
    )
    radius = np.sqrt(z**2 + y**2 + x**2)
    volume = np.random.default_rng(0).normal(0, 0.02, shape) - np.exp(-((radius - 200) ** 2) / 800)
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(volume.astype(np.float32))
        mrc.voxel_size = spacing[::-1]
    with open_tomogram(tmp_path / "a.mrc") as tomogram:
        found = ridge_features(tomogram)
    wall, up = np.abs(radius - 200) < 10, np.abs(z) / radius
    for feature in (found.ridge, found.votes):
        pole, side = (feature[wall & part].mean() for part in (up > 0.9, up < 0.3))
        assert 0.7 < pole / side < 1.4


def test_grey_scale_and_polarity_do_not_matter() -> None:
    volume, _ = vesicle()
    wanted = logits(volume)
    assert np.allclose(logits(40 * volume + 7), wanted, atol=0.05)
    inverted = RidgeOptions(SMALL.scales, SMALL.votes, invert=True)
    assert np.allclose(logits(-volume, inverted), wanted, atol=1e-4)


def test_slabs_and_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, _ = vesicle()
    wanted = logits(volume)
    monkeypatch.setattr(ridge, "SLAB", 7)
    monkeypatch.setattr(ridge, "TILE", 20)
    assert np.allclose(logits(volume), wanted, atol=1e-3)


def test_features_come_in_units_of_their_upper_quartiles() -> None:
    volume, _ = vesicle()
    found = ridge_features(tomogram_from_array(volume, voxel_spacing=10.0), SMALL)
    assert np.quantile(found.ridge, 0.75) == pytest.approx(1, rel=1e-4)
    assert np.quantile(found.votes, 0.75) == pytest.approx(1, rel=1e-4)
    assert np.isfinite(found.logits()).all()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_voxel_that_no_arithmetic_holds_spoils_its_surroundings_only() -> None:
    volume = np.tile(vesicle()[0], (1, 2, 2))
    before = logits(volume) > 0
    volume[12, 16, 75] = 1e38  # where the noise is measured
    after = logits(volume) > 0
    far = np.s_[:, 40:]
    assert (before[far] != after[far]).mean() < 0.02 < before[far].mean()


@pytest.mark.filterwarnings("always:.*no membrane found")
def test_an_empty_mask_is_told_with_what_to_try(tmp_path: Path, run: Run) -> None:
    with mrcfile.new(tmp_path / "a.mrc", data=vesicle()[0]) as mrc:
        mrc.voxel_size = 10.0
    asked = ["baseline", tmp_path / "a.mrc", "--logit-threshold", 1000]
    for given, other in (([], "--invert"), (["--invert", "--overwrite"], "leave out --invert")):
        code, _, err = run(*asked, *given)
        said = f"no membrane found: try a lower --logit-threshold, or {other}"
        assert code == 0 and f"etsam: warning: {tmp_path / 'a.mrc'}: {said}\n" in err
        assert json.loads((tmp_path / "a_ridge.json").read_text())["warnings"] == [said]


def test_odd_input_is_refused() -> None:
    flat = tomogram_from_array(np.ones((6, 12, 12), np.float32), voxel_spacing=10.0)
    with pytest.raises(ValueError, match="nearly constant"):
        next(ridge_slices(flat, SMALL))
    with pytest.raises(ValueError, match="expected positive numbers"):
        next(ridge_slices(flat, RidgeOptions(scales=(0.0,))))
    volume, _ = vesicle()
    with pytest.warns(UserWarning, match="voxel size unknown"):
        next(ridge_slices(tomogram_from_array(volume), SMALL))


def test_the_command_writes_mask_scores_and_json(tmp_path: Path, run: Run) -> None:
    volume, mask = vesicle((12, 40, 40), 0.2)
    path = tmp_path / "TS_1_10.00Apx.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(volume)
        mrc.voxel_size = 10.0
        mrc.header.origin.x = 42.0
    code, out, err = run("baseline", path, "--store-logits", "-o", tmp_path / "out")
    assert code == 0, err
    target = tmp_path / "out" / "TS_1_10.00Apx_ridge.mrc"
    assert out.strip() == str(target)
    with (
        mrcfile.open(target) as found,
        mrcfile.open(tmp_path / "out" / "TS_1_10.00Apx_ridge_logits.mrc") as scores,
    ):
        assert found.header.origin.x == 42.0
        assert np.array_equal(found.data, scores.data > 0)
        counts = confusion(found.data, mask)
        assert counts.precision > 0.9
        assert counts.recall > 0.3  # as much of so small a volume is membrane as noise
        record = json.loads((tmp_path / "out" / "TS_1_10.00Apx_ridge.json").read_text())
        assert record["results"]["membrane_voxels"] == int(found.data.sum())
    code, _, err = run("baseline", path, "-o", tmp_path / "out")
    assert code == 1
    assert "is there already" in err
    code, _, err = run("baseline", tmp_path / "none.mrc")
    assert (code, err.count("\n")) == (1, 1)


def test_scores_of_a_mask_that_is_replaced_go(tmp_path: Path, run: Run) -> None:
    """`etsam evaluate` would take them for the new mask's."""
    path = tmp_path / "TS_1.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(vesicle()[0])
        mrc.voxel_size = 10.0
    scores = tmp_path / "TS_1_ridge_logits.mrc"
    assert run("baseline", path, "--store-logits")[0] == 0
    assert scores.exists()
    assert run("baseline", path, "--invert", "--overwrite")[0] == 0
    assert not scores.exists()
    scores.write_bytes(b"a file of the user's")
    assert run("baseline", path, "--overwrite")[0] == 0
    assert scores.read_bytes() == b"a file of the user's"


@pytest.mark.filterwarnings("always")
def test_what_the_user_was_told_is_in_the_json(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "TS_1.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(vesicle()[0])
    with mrcfile.mmap(path, "r+") as stored:
        stored.data[3, 4, :5] = np.nan
    code, _, err = run("baseline", path)
    told = json.loads((tmp_path / "TS_1_ridge.json").read_text())["warnings"]
    assert code == 0 and len(told) == 2
    assert told[0].startswith("voxel size unknown, taken as 10 Å")
    assert told[1].startswith("5 NaN or infinite voxels were read as the mean")
    for line in told:
        assert err.count(f"etsam: warning: {path}: {line}") == 1
