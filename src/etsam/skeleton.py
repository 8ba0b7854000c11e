"""Rungs and spurs of a membrane mask, slice by slice.

A membrane in a slice is a band a few pixels wide; its skeleton is a line. Where the network joined
two parallel membranes by mistake the skeleton shows a *rung*: a short branch between two junctions,
each of which lies in the middle of a line that goes straight on. A *spur* is a short branch that
ends free. Both are recognised on the skeleton and removed from the mask down to the membrane's own
surface, which is carried across from either side of the junction, so that the membrane keeps its
thickness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.morphology import skeletonize

from etsam.components import pack_slice

_STEPS = np.array([(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)])
_thin: Callable[[NDArray[np.bool_]], NDArray[np.bool_]] = skeletonize
_EIGHT = np.ones((3, 3), np.uint8)

REACH = 9
"""How far [px] from a junction the course of a membrane is followed."""

NOISE_SPUR = 5
"""Free branches up to this length [px] come from a rough outline and do not make a junction."""

STRAIGHT = -0.64
"""Cosine between the two arms of a membrane that goes on: at least 130 degrees apart."""

ACROSS = 0.71
"""Largest cosine between a rung and the membrane it stands on: at least 45 degrees."""

PARALLEL = 0.71
"""Smallest cosine between the two membranes that a rung joins: at most 45 degrees."""

_HEIGHTS = np.arange(0.0, 2 * REACH, 0.5)
_NOTHING = np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class SliceCounts:
    """What was removed from one slice."""

    rungs: int = 0
    spurs: int = 0


@dataclass(frozen=True)
class _Graph:
    """Skeleton pixels grouped into branches and junction clusters.

    `part` gives the group of each pixel, `size` the pixels of each group; `branch` and `cluster`
    list which groups touch.
    """

    points: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    junction: NDArray[np.bool_]
    alive: NDArray[np.bool_]
    part: NDArray[np.int32]
    size: NDArray[np.int64]
    branch: NDArray[np.int64]
    cluster: NDArray[np.int64]

    @cached_property
    def walk(self) -> tuple[list[int], list[int], list[int]]:
        """Group of each pixel; pixels beside all pixels in a row; where each pixel's begin."""
        beside = (self.neighbours >= 0) & self.alive[self.neighbours]
        first = np.concatenate([[0], np.cumsum(beside.sum(axis=1))])
        return self.part.tolist(), self.neighbours[beside].tolist(), first.tolist()


@dataclass(frozen=True)
class _Line:
    """A membrane passing through a junction.

    `centre` is the junction, `along` and `away` are unit vectors (y, x) along the membrane and
    towards the rung, `points` (n, 2) the membrane's skeleton on either side of the junction.
    """

    centre: NDArray[np.float64]
    along: NDArray[np.float64]
    away: NDArray[np.float64]
    points: NDArray[np.int64]


def clean_slice(
    mask: NDArray[np.bool_], max_rung: int, max_spur: int = 0
) -> tuple[NDArray[np.bool_], SliceCounts]:
    """Remove rungs and spurs from one slice.

    Parameters
    ----------
    mask
        (Y, X) boolean slice; never changed.
    max_rung
        Longest rung to cut, in skeleton pixels between its two junctions; 0 cuts none.
    max_spur
        Longest spur to remove, in skeleton pixels from junction to free end; 0 removes none.

    Returns
    -------
    tuple
        The cleaned slice (`mask` itself when there was nothing to remove) and the counts.
    """
    graph = _trace(mask, max(REACH, NOISE_SPUR, max_rung, max_spur) + 3)
    if graph is None:
        return mask, SliceCounts()
    erase: list[NDArray[np.int64]] = []
    if max_spur > 0:
        for part in _free_branches(graph, max_spur).tolist():
            erase.append(_spur_pixels(mask, graph, part))
    erase = [pixels for pixels in erase if len(pixels)]
    spurs = len(erase)
    if max_rung > 0:
        graph = _without_noise(graph)
        for part, ends in _short_links(graph, max_rung):
            erase.append(_rung_pixels(mask, graph, part, ends))
    erase = [pixels for pixels in erase if len(pixels)]
    if not erase:
        return mask, SliceCounts()
    cleaned = mask.copy()
    for pixels in erase:
        cleaned[pixels[:, 0], pixels[:, 1]] = False
    return cleaned, SliceCounts(rungs=len(erase) - spurs, spurs=spurs)


def clean_packed(
    bits: NDArray[np.uint8], shape: tuple[int, int], longest: tuple[int, int]
) -> tuple[list[bytes], SliceCounts]:
    """Clean slices (n, bytes) of `shape`; returns them as `pack_slice` does, and the counts.

    `longest` are the longest rung and the longest spur.
    """
    packed, rungs, spurs = [], 0, 0
    for row in bits:
        mask = np.unpackbits(row, count=shape[0] * shape[1]).view(bool).reshape(shape)
        cleaned, removed = clean_slice(mask, *longest)
        packed.append(pack_slice(cleaned))
        rungs += removed.rungs
        spurs += removed.spurs
    return packed, SliceCounts(rungs, spurs)


def _trace(mask: NDArray[np.bool_], margin: int) -> _Graph | None:
    """Skeletonise a slice; None when its skeleton has no junction.

    Only what lies within `margin` pixels of a junction (and a little more) is in the graph.
    """
    if not mask.any():
        return None
    rows, columns = np.divmod(np.flatnonzero(_thin(mask)), mask.shape[1])
    points = np.stack([rows, columns], axis=1)
    junction = (_neighbours(points, mask.shape) >= 0).sum(axis=1) >= 3
    if not junction.any():
        return None
    tiles = np.zeros((mask.shape[0] // margin + 3, mask.shape[1] // margin + 3), bool)
    home = points // margin + 1
    for y, x in (*_STEPS.tolist(), (0, 0)):
        tiles[home[junction, 0] + y, home[junction, 1] + x] = True
    near = tiles[home[:, 0], home[:, 1]]
    points, junction = points[near], junction[near]
    return _group(points, _neighbours(points, mask.shape), junction, np.ones(len(points), bool))


def _neighbours(points: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return the numbers (n, 8) of the points beside each point, -1 where there is none."""
    stride = shape[1] + 2
    flat = (points[:, 0] + 1) * stride + points[:, 1] + 1
    lookup = np.full((shape[0] + 2) * stride, -1, np.int32)
    lookup[flat] = np.arange(len(points), dtype=np.int32)
    return np.asarray(lookup[flat[:, None] + (_STEPS @ np.array([stride, 1]))])


def _group(
    points: NDArray[np.int64],
    neighbours: NDArray[np.int32],
    junction: NDArray[np.bool_],
    alive: NDArray[np.bool_],
) -> _Graph:
    """Collect touching skeleton pixels of one kind (junction or not) into groups."""
    n = len(points)
    half = neighbours[:, : len(_STEPS) // 2]  # every touch once
    first, column = np.nonzero(half >= 0)
    second = half[first, column]
    live = alive[first] & alive[second]
    first, second = first[live], second[live]
    same = junction[first] == junction[second]
    links = coo_matrix((np.ones(same.sum(), np.int8), (first[same], second[same])), shape=(n, n))
    groups, part = connected_components(links, directed=False)
    one, two = first[~same], second[~same]
    branch, cluster = np.where(junction[one], (two, one), (one, two))
    pairs = np.unique(part[branch].astype(np.int64) * groups + part[cluster])
    size = np.bincount(part, minlength=groups)  # skeleton pixels only: a few thousand
    return _Graph(points, neighbours, junction, alive, part, size, pairs // groups, pairs % groups)


def _free(graph: _Graph) -> NDArray[np.bool_]:
    """Say for each group whether it is a branch with a free end."""
    degree = ((graph.neighbours >= 0) & graph.alive[graph.neighbours]).sum(axis=1)
    free = np.zeros(len(graph.size), bool)
    free[graph.part[(degree <= 1) & graph.alive]] = True
    # A branch of one pixel can touch its junction twice and so have no pixel of degree one.
    free[graph.size == 1] = True
    return free


def _arm_counts(graph: _Graph, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the arms of each junction cluster among the `kept` groups; a loop has two there."""
    touched = np.bincount(graph.branch, minlength=len(graph.size))
    arms = np.where((touched == 1) & ~_free(graph), 2, 1) * kept
    counts = np.zeros(len(graph.size), np.int64)
    np.add.at(counts, graph.cluster, arms[graph.branch])
    return counts


def _free_branches(graph: _Graph, longest: int) -> NDArray[np.int64]:
    """List the branches of at most `longest` pixels that hang on one junction by one end."""
    touched = np.bincount(graph.branch, minlength=len(graph.size))
    arms = _arm_counts(graph, np.ones(len(graph.size), bool))
    spur = (touched == 1) & (graph.size <= longest) & _free(graph)
    chosen = spur[graph.branch] & (arms[graph.cluster] >= 3)
    return np.asarray(graph.branch[chosen])


def _without_noise(graph: _Graph) -> _Graph:
    """Drop the spurs of a rough outline, and the junctions that were only made by them."""
    for _ in range(2):
        kept = np.ones(len(graph.size), bool)
        kept[_free_branches(graph, NOISE_SPUR)] = False
        junction = graph.junction & (_arm_counts(graph, kept) >= 3)[graph.part]
        if np.array_equal(junction, graph.junction):
            return graph
        graph = _group(graph.points, graph.neighbours, junction, graph.alive & kept[graph.part])
    return graph


def _short_links(graph: _Graph, longest: int) -> list[tuple[int, tuple[int, int]]]:
    """List the branches of at most `longest` pixels between two junctions, with these."""
    touched = np.bincount(graph.branch, minlength=len(graph.size))
    inside = (touched[graph.branch] == 2) & (graph.size[graph.branch] <= longest)
    branch, cluster = graph.branch[inside], graph.cluster[inside]  # sorted by branch
    pairs = zip(branch[::2], cluster[::2], cluster[1::2], strict=True)
    return [(int(part), (int(one), int(two))) for part, one, two in pairs]


def _rung_pixels(
    mask: NDArray[np.bool_], graph: _Graph, part: int, ends: tuple[int, int]
) -> NDArray[np.int64]:
    """Find the mask pixels of a rung; none when it is not one between two parallel membranes."""
    centres = [_mean(graph.points[graph.part == end]) for end in ends]
    across = _unit(centres[1] - centres[0])
    first = _line(graph, (part, ends[0]), centres[0], across)
    if first is None:
        return _NOTHING
    second = _line(graph, (part, ends[1]), centres[1], -across)
    if second is None or abs(float(first.along @ second.along)) < PARALLEL:
        return _NOTHING
    return _beyond(mask, graph.points[graph.part == part], (first, second))


def _spur_pixels(mask: NDArray[np.bool_], graph: _Graph, part: int) -> NDArray[np.int64]:
    """Find the mask pixels of a spur; none when the membrane does not go straight on under it."""
    end = int(graph.cluster[graph.branch == part][0])
    centre = _mean(graph.points[graph.part == end])
    pixels = graph.points[graph.part == part]
    tip = pixels[np.hypot(*(pixels - centre).T).argmax()] - centre
    line = _line(graph, (part, end), centre, _unit(tip))
    return _NOTHING if line is None else _beyond(mask, pixels, (line,))


def _arms(graph: _Graph, end: int, skip: int) -> list[NDArray[np.int64]]:
    """Follow each branch but `skip` from a junction for up to REACH pixels; points (n, 2)."""
    part, beside, first = graph.walk
    seen = set(np.flatnonzero(graph.part == end).tolist())
    around = [other for pixel in sorted(seen) for other in beside[first[pixel] : first[pixel + 1]]]
    arms = []
    for start in around:
        own = part[start]
        if start in seen or own in (end, skip):
            continue
        arm, front = [start], [start]
        seen.add(start)
        for _ in range(REACH - 1):
            near = {n for pixel in front for n in beside[first[pixel] : first[pixel + 1]]} - seen
            front = [other for other in near if part[other] == own]
            seen.update(front)
            arm += front
        arms.append(graph.points[arm])
    return arms


def _line(
    graph: _Graph,
    where: tuple[int, int],
    centre: NDArray[np.float64],
    direction: NDArray[np.float64],
) -> _Line | None:
    """Find the membrane that carries a branch at one junction (`where` is both their parts).

    None when no two arms of the junction make a straight line across the branch's `direction`.
    """
    part, end = where
    arms = _arms(graph, end, part)
    courses = [_unit(_mean(arm) - centre) for arm in arms]
    plain = [course.tolist() for course in courses]
    cosines = [
        (plain[i][0] * plain[j][0] + plain[i][1] * plain[j][1], i, j)
        for i, j in combinations(range(len(arms)), 2)
    ]
    cosine, i, j = min(cosines, default=(1.0, 0, 0))
    if cosine > STRAIGHT:
        return None
    along = _unit(courses[i] - courses[j])
    if abs(float(along @ direction)) > ACROSS:
        return None
    away = np.array([-along[1], along[0]])
    away = away if away @ direction > 0 else -away
    return _Line(centre, along, away, np.concatenate([arms[i], arms[j]]))


def _surface(mask: NDArray[np.bool_], line: _Line) -> NDArray[np.float64] | None:
    """Fit the height of a membrane's surface on both sides of a junction, but not at it.

    Returns the coefficients of a polynomial of the position along the line, highest power first,
    or None where too little of the surface is free.
    """
    rays = line.points[:, :, None] + _HEIGHTS * line.away[:, None]  # (n, 2, steps)
    y, x = np.rint(rays).astype(np.int64).swapaxes(0, 1)
    inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    filled = mask[y * inside, x * inside] & inside
    filled[:, -1] = False
    thickness = _HEIGHTS[np.maximum(filled.argmin(axis=1) - 1, 0)]
    # Rays that start under the rung run through it: the usual thickness tells the surface.
    usual = np.sort(thickness)[len(thickness) // 4]
    position = (line.points - line.centre) @ line.along
    height = (line.points - line.centre) @ line.away + thickness
    good = (thickness <= usual + 1.5) & (np.abs(position) > 1)
    fewest = min(int((good & (position < 0)).sum()), int((good & (position > 0)).sum()))
    if fewest < 2:
        return None
    x_good = position[good]
    columns = [x_good * x_good, x_good] if fewest > 3 else [x_good]
    powers = np.stack([*columns, np.ones(len(x_good))], axis=1)
    return np.asarray(np.linalg.solve(powers.T @ powers, powers.T @ height[good]))


def _beyond(
    mask: NDArray[np.bool_], core: NDArray[np.int64], lines: tuple[_Line, ...]
) -> NDArray[np.int64]:
    """Return the mask pixels (n, 2) joined to `core` that lie beyond every line's surface."""
    low = np.maximum(core.min(axis=0) - REACH, 0)
    high = np.minimum(core.max(axis=0) + REACH + 1, mask.shape)
    free = mask[low[0] : high[0], low[1] : high[1]].copy()
    rows = np.arange(low[0], high[0])[:, None]
    columns = np.arange(low[1], high[1])
    for line in lines:
        surface = _surface(mask, line)
        if surface is None:
            return _NOTHING
        y, x = rows - line.centre[0], columns - line.centre[1]
        position = y * line.along[0] + x * line.along[1]
        height = y * line.away[0] + x * line.away[1]
        course = surface[0] * position + surface[1]
        if len(surface) == 3:
            course = course * position + surface[2]
        free &= (height > course + 0.25) & (np.abs(position) <= REACH)
    pieces, count = label(free, _EIGHT)
    kept = np.zeros(count + 1, bool)
    kept[pieces[core[:, 0] - low[0], core[:, 1] - low[1]]] = True
    kept[0] = False
    return np.asarray(np.argwhere(kept[pieces]) + low)


def _mean(points: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the centre (y, x) of a few points; several times as fast as `mean`."""
    return np.asarray(np.add.reduce(points) / len(points))


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale a vector to length one."""
    return vector / max(math.hypot(*vector.tolist()), 1e-9)
