"""Physics of the simulator: projections, wedge, CTF, bilayer, labels."""

from __future__ import annotations

import math
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import torch

from etsam.simulation.contents import add_mapped_membrane_proteins
from etsam.simulation.density import Bilayer, bilayer_profile, scatter
from etsam.simulation.geometry import ellipsoid, normalised, torus
from etsam.simulation.imaging import (
    Reconstruction,
    TiltSeries,
    back_project,
    contrast_transfer,
    dose_envelope,
    exposure_before,
    gaussian,
    hidden_by_wedge,
    image_views,
    noise_views,
    project,
    wavelength,
    weight_views,
)
from etsam.simulation.labels import label_thickness, membrane_labels
from etsam.simulation.membranes import add_vesicles
from etsam.simulation.recipe import LEAN, Contents, SimulationOptions, draw
from etsam.simulation.render import membrane_contrast, quarter_turn, render
from etsam.simulation.sample import build_sample
from etsam.simulation.scene import Wall, empty_scene, place
from etsam.simulation.segmentations import midsurface_distance

FULL_RAMP = Reconstruction(saturation=0.0, cutoff=0.6, in_plane_cutoff=9.0)


def series(low: float, high: float, step: float = 3.0, axis: float = 0.0) -> TiltSeries:
    angles = tuple(float(a) for a in np.arange(low, high + 0.1, step))
    return TiltSeries(angles=angles, axis_angle=axis)


def ball(shape: tuple[int, int, int], center: tuple[float, ...], radius: float) -> torch.Tensor:
    z, y, x = (torch.arange(n, dtype=torch.float32) - c for n, c in zip(shape, center, strict=True))
    r = (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt()
    return (radius + 0.5 - r).clamp(0, 1)


def reconstruct(volume: torch.Tensor, tilt: TiltSeries) -> torch.Tensor:
    plane = (volume.shape[1], volume.shape[2])
    views = project(volume, tilt, volume.shape[0] / 2)
    weighted = weight_views(views, tilt, FULL_RAMP, plane, 10.0)
    return back_project(weighted, volume.shape[0], plane, tilt, volume.shape[0] / 2)


def test_untilted_projection_is_the_sum_along_the_beam() -> None:
    volume = torch.rand(12, 20, 24)
    views = project(volume, replace(series(0, 0), angles=(0.0,)), 6.0)
    assert torch.allclose(torch.fft.irfft2(views[0]), volume.sum(dim=0), atol=1e-4)


def test_tilt_moves_a_point_by_height_times_tangent() -> None:
    volume = torch.zeros(17, 16, 64)
    volume[14, 8, 32] = 1.0  # 6 voxels above the plane z = 8
    views = project(volume, replace(series(0, 0), angles=(45.0,)), 8.0)
    image = torch.fft.irfft2(views[0], s=(16, 64))
    assert int(image[8].argmax()) == 32 + 6
    assert float(image.sum()) == pytest.approx(1 / math.cos(math.radians(45)), rel=1e-4)


@pytest.mark.parametrize("axis", [1e-9, 25.0])
def test_both_ways_to_project_agree(axis: float) -> None:
    volume = ball((20, 48, 48), (9.0, 24.0, 24.0), 7.0)  # round: the axis does not matter
    straight = reconstruct(volume, series(-60, 60))
    other = reconstruct(volume, series(-60, 60, axis=axis))
    at = (9, 24, 24)
    assert float(other[at]) == pytest.approx(float(straight[at]), rel=0.1)
    if axis < 1:
        assert torch.allclose(other, straight, atol=1e-3 * float(straight.abs().max()))


def test_reconstruction_peaks_where_the_object_is() -> None:
    volume = ball((32, 64, 64), (20.0, 30.0, 40.0), 1.0)
    found = reconstruct(volume, series(-60, 60, 2.0))
    assert np.unravel_index(int(found.argmax()), found.shape) == (20, 30, 40)


def test_missing_wedge_is_empty_in_fourier_space() -> None:
    tilt = series(-50, 40, 2.0)
    noise = noise_views(tilt, (48, 96), np.random.default_rng(3))
    weighted = weight_views(noise, tilt, FULL_RAMP, (48, 96), 10.0)
    volume = back_project(weighted, 96, (48, 96), tilt, 48.0)
    window = torch.hann_window(96)[:, None, None]
    power = torch.fft.fftn(volume * window).abs().square().sum(dim=1).numpy()
    kz, kx = (np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96)[None, :])
    angle = np.degrees(np.arctan2(kz * np.sign(kx), np.abs(kx)))
    ring = (np.hypot(kz, kx) > 0.15) & (np.hypot(kz, kx) < 0.4) & (np.abs(kx) > 0.02)
    inside = power[ring & (angle > -45) & (angle < 35)].mean()
    assert power[ring & (angle > 50)].mean() < 0.02 * inside
    assert power[ring & (angle < -60)].mean() < 0.02 * inside
    assert power[ring & (angle < -44) & (angle > -48)].mean() > 0.2 * inside  # tilted that far


def test_few_views_leave_gaps_many_do_not() -> None:
    spread = []
    for step in (12.0, 1.0):
        volume = ball((48, 16, 96), (24.0, 8.0, 48.0), 2.0)
        found = reconstruct(volume, series(-60, 60, step))[:, 8]
        far = found[:, 48 + 20 : 48 + 40]
        spread.append(float(far.std() / found.max()))
    assert spread[0] > 2.0 * spread[1]


def test_contrast_transfer_has_its_zeros() -> None:
    tilt = replace(series(0, 0), defocus=30_000.0, amplitude_contrast=0.07)
    assert wavelength(300.0) == pytest.approx(0.0197, abs=1e-4)
    assert float(contrast_transfer(torch.tensor([0.0]), tilt)) == pytest.approx(0.07, abs=1e-6)
    k = torch.linspace(0, 0.06, 6001)
    sign_changes = k[1:][contrast_transfer(k, tilt).sign().diff() != 0]
    first = math.sqrt((1 - math.asin(0.07) / math.pi) / (wavelength(300.0) * 30_000.0))
    assert float(sign_changes[0]) == pytest.approx(first, rel=0.01)


def test_dose_damages_fine_detail_first_and_late_views_most() -> None:
    k, dose = torch.tensor([0.01, 0.05]), torch.tensor(100.0)
    coarse, fine = dose_envelope(k, dose)
    assert 1 > float(coarse) > float(fine) > 0
    assert torch.allclose(dose_envelope(k, 0.8 * dose, 200.0), torch.stack([coarse, fine]))
    tilt = replace(series(-60, 60), exposure=100.0)
    before = exposure_before(tilt)
    assert abs(tilt.angles[int(before.argmin())]) == 0.0
    assert abs(tilt.angles[int(before.argmax())]) == 60.0


def test_bilayer_heads_are_four_nanometres_apart() -> None:
    d = torch.linspace(-45, 45, 901)
    profile = bilayer_profile(d, Bilayer())
    upper, lower = d[450:][profile[450:].argmax()], d[:450][profile[:450].argmax()]
    assert 38 < float(upper - lower) < 44
    assert float(profile[450]) < 0 < float(profile.max())


def test_bilayer_fits_the_measured_profile(shared: object) -> None:
    path = f"{shared}/protein_maps/bilayer_electron_density_profile_POPE_POPG.csv"
    z, measured, _ = np.loadtxt(path, delimiter=",", skiprows=1).T
    fitted = bilayer_profile(torch.tensor(z), Bilayer()).numpy()
    assert np.abs(fitted - measured).max() < 0.1
    assert np.corrcoef(fitted, measured)[0, 1] > 0.97


def test_blur_keeps_the_amount_of_lipid() -> None:
    d = torch.linspace(-150, 150, 3001)
    sharp, soft = (bilayer_profile(d, Bilayer(), blur).sum() for blur in (0.0, 8.0))
    assert float(soft) == pytest.approx(float(sharp), rel=1e-3)


def test_distances_of_shapes() -> None:
    rng = np.random.default_rng(0)
    axes = [torch.arange(64, dtype=torch.float32)] * 3
    center = np.full(3, 32.0)
    sphere = ellipsoid(center, np.full(3, 20.0), np.eye(3), (0.0, 1.0, rng))
    distance, normal = normalised(sphere.field(*axes))
    assert float(distance[32, 32, 57]) == pytest.approx(5.0, abs=0.05)
    assert float(normal[2, 32, 32, 52]) == pytest.approx(1.0, abs=0.01)
    ring = torus(center, (18.0, 6.0), np.eye(3))
    assert float(ring.field(*axes)[32, 32, 50]) == pytest.approx(-6.0, abs=1e-4)


def scene_with_sphere(spacing: float, tilt: TiltSeries, lean: float = LEAN) -> torch.Tensor:
    scene = empty_scene((64, 96, 96), spacing, tilt)
    shape = ellipsoid(
        np.array([32.0, 48, 48]), np.full(3, 25.0), np.eye(3), (0.0, 1.0, np.random.default_rng(0))
    )
    assert place(scene, shape, Wall(), 50.0)
    return membrane_labels(scene, lean)


@pytest.mark.parametrize("spacing", [8.0, 13.6, 20.0])
def test_label_thickness(spacing: float) -> None:
    labels = scene_with_sphere(spacing, series(-60, 60))
    thick = int((labels[32, 48, 48:] == 1).sum()) * spacing
    assert abs(thick - label_thickness(spacing)) <= 1.2 * spacing


def test_caps_of_a_vesicle_are_ignored() -> None:
    labels = scene_with_sphere(10.0, series(-60, 60))
    assert int(labels[32, 48, 48 + 25]) == 1  # equator, normal along x
    assert int(labels[32, 48 + 25, 48]) == 1  # equator, normal along y
    assert int(labels[32 + 25, 48, 48]) == -1  # top
    assert set(labels.unique().tolist()) == {-1, 0, 1}


def test_walls_that_lean_are_labelled_as_far_as_asked() -> None:
    """At 45 degrees along the tilt axis a wall lies in the missing wedge."""
    narrow, wide = (scene_with_sphere(10.0, series(-60, 60), lean) for lean in (LEAN, 55.0))
    up = round(25 * math.sin(math.radians(45)))
    assert int(narrow[32 + up, 48 + up, 48]) == -1 and int(wide[32 + up, 48 + up, 48]) == 1
    assert int(wide[32 + 25, 48, 48]) == -1  # top
    assert torch.equal(narrow != 0, wide != 0)


def test_where_a_cut_membrane_went_on_is_ignored() -> None:
    """Few views smear what is left of it beyond the sample's face, where it still looks like one."""
    drawn = draw(np.random.default_rng(0), SimulationOptions(preset="vesicles"))
    contents = Contents(vesicles=12, radii=(200.0, 400.0))
    whole, cut = (
        membrane_labels(
            build_sample(
                (40, 96, 96),
                replace(drawn, contents=contents, thickness=0.5, slope=(0.0, 0.0), cut=cuts),
                SimulationOptions(),
                np.random.default_rng(4),
            ),
            LEAN,
        )
        for cuts in (False, True)
    )
    changed = whole != cut
    assert changed.any() and (whole[changed] == 1).all() and (cut[changed] == -1).all()
    slices = changed.any(2).any(1).nonzero()[:, 0]
    inside = [z for z in range(40) if not changed[z].any()]
    assert len(inside) >= 18 and inside[-1] - inside[0] == len(inside) - 1, slices
    assert torch.equal(whole[inside], cut[inside]) and (cut[inside] == 1).any()


def test_what_is_left_of_a_cut_membrane_is_background_from_some_distance_on() -> None:
    drawn = draw(np.random.default_rng(0), SimulationOptions(preset="vesicles", voxel_spacing=10.0))
    drawn = replace(drawn, contents=Contents(vesicles=12, radii=(200.0, 400.0)))
    drawn = replace(drawn, thickness=0.5, slope=(0.0, 0.0), cut=True)
    near, far = (
        build_sample(
            (48, 96, 96), drawn, SimulationOptions(ghosts=ghosts), np.random.default_rng(4)
        ).removed
        for ghosts in (50.0, math.inf)
    )
    assert near is not None and far is not None
    kept, every = ((x.abs() < 30).flatten(1).any(1).nonzero()[:, 0] for x in (near, far))
    assert len(every) > len(kept) > 0 and set(kept.tolist()) <= set(every.tolist())
    gap = int(kept.diff().argmax()) + 1
    assert max(gap, len(kept) - gap) <= 5, "slices of 10 Å on either side of the sample"


def test_asymmetric_wedge_hides_one_side() -> None:
    tilt = series(-60, 30)
    steep = math.radians(45)
    normals = torch.tensor([[math.sin(steep), -math.sin(steep)], [0, 0], [math.cos(steep)] * 2])
    assert (hidden_by_wedge(normals, tilt) > 0).tolist() == [True, False]


def test_membranes_keep_clear_of_each_other() -> None:
    scene = empty_scene((48, 160, 160), 10.0, series(-60, 60))
    add_vesicles(scene, np.random.default_rng(5), (0.0, 48.0), (200.0, 400.0), 40)
    assert scene.regions > 5
    walls = scene.distance.abs() < 10
    both = walls & (scene.density > 0.9)  # two bilayers on one spot would add up
    assert float(both.sum()) < 1e-3 * float(walls.sum())


def test_blur_damps_high_frequencies_as_a_gaussian() -> None:
    tilt = replace(series(-30, 30), exposure=0.0)
    views = project(ball((24, 64, 64), (12.0, 32.0, 32.0), 9.0), tilt, 12.0)
    sharp, soft = (
        image_views(views, replace(tilt, blur=blur), (64, 64), 10.0, np.random.default_rng(0))
        for blur in (0.0, 15.0)
    )
    untilted = len(tilt.angles) // 2
    damping = (soft / sharp)[untilted, 0].abs()  # along x, up to one cycle in 20 Å
    frequency = torch.fft.rfftfreq(64) / 10.0
    expected = torch.exp(-2 * (math.pi * 15.0 * frequency).square())
    torch.testing.assert_close(damping, expected, atol=1e-3, rtol=0)


def leaflets(blur: float, core: float) -> int:
    """Count the peaks of the mean profile across an upright wall."""
    options = SimulationOptions(
        preset="vesicles", voxel_spacing=8.0, bright_membranes=True, blur=blur, core=core, views=41
    )
    rng = np.random.default_rng(3)
    recipe = draw(rng, replace(options, contrast_to_noise=8.0))
    plain = Contents(vesicles=3, radii=(250.0, 300.0), embedded=0.0)
    tilt = replace(recipe.tilt, defocus=25_000.0, shift=0.0, axis_angle=0.0)
    recipe = replace(recipe, contents=plain, tilt=tilt, reconstruction=FULL_RAMP, cut=False)
    scene = build_sample((40, 96, 96), recipe, options, np.random.default_rng(4))
    views = project(scene.density, tilt, 20.0)
    imaged = image_views(views, tilt, (96, 96), 8.0, np.random.default_rng(5))
    weighted = weight_views(imaged, tilt, FULL_RAMP, (96, 96), 8.0)
    volume = back_project(weighted, 40, (96, 96), tilt, 20.0)
    seen = (scene.distance.abs() < 40) & (scene.hidden == 0)
    bins = ((scene.distance[seen] + 40) / 8).long()
    profile = torch.zeros(11).index_add(0, bins, volume[seen]) / torch.bincount(bins, minlength=11)
    inner = profile[1:-2]
    return int(((inner > profile[:-3]) & (inner > profile[2:-1])).sum())


def test_blur_and_core_proteins_merge_the_leaflets() -> None:
    assert leaflets(blur=0.0, core=0.0) == 2
    assert leaflets(blur=14.0, core=0.3) == 1


def test_softness_leaves_the_rest_of_a_seed_alone() -> None:
    given = SimulationOptions(blur=0.0, core=0.0)
    drawn, fixed = (draw(np.random.default_rng(8), o) for o in (SimulationOptions(), given))
    assert (drawn.tilt.blur, drawn.core) != (0.0, 0.0)
    assert replace(drawn, core=0.0, tilt=replace(drawn.tilt, blur=0.0)) == fixed


def test_given_contents_leave_the_rest_of_a_seed_alone() -> None:
    given = {"actin": 11, "microtubules": 3, "gold": 0, "carbon": True}
    drawn, fixed = (
        draw(np.random.default_rng(8), o) for o in (SimulationOptions(), SimulationOptions(**given))
    )
    assert {name: getattr(fixed.contents, name) for name in given} == given
    assert drawn == replace(fixed, contents=drawn.contents)
    assert drawn.contents == replace(
        fixed.contents, **{name: getattr(drawn.contents, name) for name in given}
    )


def test_scatter_adds_templates_and_clips_at_the_edge() -> None:
    density = torch.zeros(8, 9, 10)
    where = torch.tensor([[4, 4, 4], [0, 0, 0]])
    scatter(density, torch.ones(1, 3, 3, 3), where, torch.zeros(2).long(), torch.tensor([1.0, 2.0]))
    assert float(density.sum()) == 27 + 2 * 8


def test_midsurface_of_a_segmented_slab() -> None:
    mask = np.zeros((24, 24, 24), bool)
    mask[9:14] = True
    distance, normal = midsurface_distance(mask)
    assert distance[11, 12, 12] < 0.5
    assert distance[15, 12, 12] == pytest.approx(4.0, abs=0.5)
    assert abs(normal[0, 14, 12, 12]) > 0.95


def test_user_membrane_proteins_lie_along_the_normal(tmp_path: object) -> None:
    stick = np.zeros((15, 15, 15), np.float32)
    stick[1:14, 6:9, 6:9] = 1.0
    path = f"{tmp_path}/stick.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(stick)
        mrc.voxel_size = 10.0
    scene = empty_scene((32, 48, 48), 10.0, series(-60, 60))
    z = torch.arange(32, dtype=torch.float32)[:, None, None]
    scene.distance = ((z - 16) * 10.0).expand(32, 48, 48).clone()
    add_mapped_membrane_proteins(scene, np.random.default_rng(1), (path,), 2.0)
    profile = scene.density.sum(dim=(1, 2))
    assert float(profile[12] + profile[20]) > 0.5 * float(profile[16])
    assert float(profile[4]) == 0


def test_quarter_turn_keeps_the_axis_near_y() -> None:
    assert quarter_turn(10.0) == (False, 10.0)
    assert quarter_turn(90.0) == (True, 0.0)
    assert quarter_turn(-80.0) == (True, -10.0)
    assert quarter_turn(170.0) == (False, -10.0)


def test_contrast_to_noise_is_what_was_asked_for() -> None:
    options = SimulationOptions(preset="vesicles", voxel_spacing=10.0, bright_membranes=True)
    plain = Contents(vesicles=12, radii=(250.0, 500.0), embedded=0.0)
    shown = []
    for ratio in (0.3, 3.0):
        rng = np.random.default_rng(11)
        recipe = draw(rng, replace(options, contrast_to_noise=ratio))
        recipe = replace(recipe, contents=plain, reconstruction=FULL_RAMP)
        volume, labels, _ = render(recipe, (24, 96, 96), options, rng)
        shown.append(float(volume[labels == 1].mean() - volume[labels == 0].mean()))
    assert 0.05 < shown[0] < 0.45  # about 0.3, less where the label is wider than the bilayer
    assert shown[1] > 2 * shown[0]


def test_contrast_of_uneven_membranes_is_told_from_what_noise_is_scaled_to() -> None:
    far = torch.arange(1000) < 500
    even, uneven = torch.where(far, 0.0, 2.0), torch.where(far, 0.0, torch.arange(1000) % 2 * 20.0)
    uneven[~far] -= 9.5
    assert membrane_contrast(even, ~far, far) == (2.0, 1.0)
    scaled_to, share = membrane_contrast(uneven, ~far, far)
    assert scaled_to == pytest.approx(3.0, rel=0.01)  # 0.3 of a spread of 10
    assert share is not None and share * scaled_to == pytest.approx(0.5)
    assert membrane_contrast(uneven, far & ~far, far) == (
        pytest.approx(2 * float(uneven.std())),
        None,
    )


def test_noise_is_the_same_for_the_same_generator() -> None:
    first, second = (gaussian((4, 5), np.random.default_rng(2)) for _ in range(2))
    assert torch.equal(first, second)
