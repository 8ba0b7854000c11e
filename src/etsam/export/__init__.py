"""Hand a membrane mask on: meshes, labels, points, and folders for other programs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etsam.export import layouts
from etsam.export.mesh_files import MESH_FORMATS, write_mesh
from etsam.export.points import (
    SPACING,
    check_point_spacing,
    check_star_name,
    oriented_points,
    write_mid_surface,
    write_star,
)
from etsam.instances import (
    MIN_VOXELS,
    Instances,
    kept_labels,
    plain_components,
    separate_membranes,
)
from etsam.labelled import label_surface, label_thickness
from etsam.membrane import Membrane, load_membrane
from etsam.meshes import MAX_FACES, Mesh, surface_mesh
from etsam.midsurface import MidSurface, mid_surface, thickness
from etsam.ngff_metadata import refuse_folder
from etsam.options import LOGIT_THRESHOLD, check_counts, take_paths
from etsam.overlay import check_shapes
from etsam.renaming import rename
from etsam.staging import hidden_folder
from etsam.storage import naming, refuse_taken
from etsam.volume import Tomogram, open_tomogram, refuse_input, stem_of, whole_volume

FORMATS = (
    *MESH_FORMATS,
    "labels",
    "points",
    "midsurface",
    "membrain-pick",
    "morphometrics",
    "copick",
    "chimerax",
)
LABELLINGS = ("separate", "components", "keep")
DEFAULT_FORMATS = ("ply", "labels", "chimerax")
FOLDER_FORMATS = {
    "membrain-pick": ("mb*.mrc",),
    "morphometrics": ("config.yml", "segmentations/*_labels.mrc", "tomograms/*"),
    "copick": ("config.json", "*/Segmentations/*_etsam_0_*.zarr/*", "*/etsam_0_membrane.glb"),
}
"""Formats that are folders, and what an export puts there."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportOptions:
    """What to export: names of `FORMATS`; see docs/export.md.

    ``labelling`` tells touching membranes apart ("separate"), takes what hangs together as one
    ("components") or keeps the numbers of the file ("keep"); of those below ``min_voxels`` there is no label
    (None: 500, and 0 where numbers are kept).
    """

    formats: tuple[str, ...] = DEFAULT_FORMATS
    threshold: float = LOGIT_THRESHOLD
    labelling: str = "separate"
    min_voxels: int | None = None
    max_faces: int = MAX_FACES
    point_spacing: float = SPACING
    voxel_spacing: float | None = None
    tomogram: Path | None = None
    output: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        formats: object = self.formats
        if isinstance(formats, str):
            raise ValueError(f"formats is {formats!r}: expected several, as ({formats!r},)")
        object.__setattr__(self, "formats", tuple(dict.fromkeys(self.formats)))
        take_paths(self, "tomogram", "output")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {self.threshold}: expected a number")
        unknown = sorted(set(self.formats) - set(FORMATS))
        if unknown or not self.formats:
            raise ValueError(f"formats {unknown}: expected some of {', '.join(FORMATS)}")
        if self.labelling not in LABELLINGS:
            raise ValueError(
                f"labelling is {self.labelling!r}: expected one of {', '.join(LABELLINGS)}"
            )
        check_counts(self, {"max_faces": 1})
        if self.min_voxels is not None:
            check_counts(self, {"min_voxels": 0})

    @property
    def smallest(self) -> int:
        """Voxels of the smallest membrane that gets a label."""
        if self.min_voxels is not None:
            return self.min_voxels
        return 0 if self.labelling == "keep" else MIN_VOXELS


@dataclass
class _Work:
    """One export under way; what several formats need is made once."""

    source: Path
    like: Tomogram
    tomogram: Tomogram | None
    membrane: Membrane
    options: ExportOptions
    folder: Path
    _made: dict[str, Instances | MidSurface | Mesh] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        return stem_of(self.source)

    @property
    def tomogram_stem(self) -> str:
        """The tomogram's own stem, as programs match files by it."""
        return _tomogram_stem(self.source, self.options)

    def instances(self) -> Instances:
        if "instances" not in self._made:
            least, how = self.options.smallest, self.options.labelling
            if how == "separate":
                made = separate_membranes(self.membrane, min_voxels=least, surface=self.surface())
            elif how == "components":
                made = plain_components(self.membrane, min_voxels=least)
            else:
                made = kept_labels(self.membrane, min_voxels=least)
            self._made["instances"] = made
        made_before = self._made["instances"]
        assert isinstance(made_before, Instances)
        return made_before

    def say_if_unlabelled(self) -> None:
        """Warn where labels were wanted and no membrane was large enough for one."""
        if "instances" in self._made and not len(self.instances()):
            warnings.warn(
                f"every membrane of {self.source} is smaller than --min-voxels "
                f"{self.options.smallest}: none gets a label",
                stacklevel=3,
            )

    def point_labels(self) -> NDArray[np.integer]:
        """Labels of the points of the mid-surface; 0 where one is in none."""
        labels: NDArray[np.integer] = self.instances().labels[tuple(self.surface().voxels.T)]
        return labels

    def say_if_pointless(self) -> None:
        """Warn where points were wanted and the mid-surface of a membrane has none."""
        if not {"points", "midsurface"} & set(self.options.formats):
            return
        named = self.point_labels()
        without = len(self.instances()) - len(np.unique(named[named > 0]))
        if without:
            warnings.warn(
                f"{without} of {len(self.instances())} membranes of {self.source} have no mid-surface "
                "inside of the volume, and so no point",
                stacklevel=3,
            )

    def surface(self) -> MidSurface:
        if "surface" not in self._made:
            if self.options.labelling == "keep":
                self._made["surface"] = label_surface(self.instances(), self.membrane.frame)
            else:
                self._made["surface"] = mid_surface(self.membrane)
        made = self._made["surface"]
        assert isinstance(made, MidSurface)
        return made

    def thickness(self) -> NDArray[np.float32]:
        """Local thickness [Å] at the points of the mid-surface, of the label where these are kept."""
        if self.options.labelling == "keep":
            return label_thickness(self.instances(), self.membrane.frame, self.surface())
        return thickness(self.membrane, self.surface())

    def mesh(self) -> Mesh:
        if "mesh" not in self._made:
            self._made["mesh"] = surface_mesh(self.membrane, max_faces=self.options.max_faces)
        made = self._made["mesh"]
        assert isinstance(made, Mesh)
        return made


def export_file(
    path: Path | str, options: ExportOptions | None = None, progress: Progress | None = None
) -> list[Path]:
    """Export a mask, or logits with a threshold; returns the files and folders that were made.

    They lie beside the mask or in `options.output`, and get their names when all are complete.

    Raises
    ------
    FileNotFoundError, FileExistsError, ValueError, OSError
        The mask is missing, unfit or empty, a result is there already, a library is missing, or the disk is full.
    """
    options = options or ExportOptions()
    source = Path(path)
    home = _home(source, options)
    folders = {home / _name(kind, source): own for kind, own in FOLDER_FORMATS.items()}
    targets = result_paths(source, options)
    refuse_input(targets, source, "mask", "-o")
    if options.tomogram is not None:
        refuse_input(targets, options.tomogram, "tomogram", "-o")
    for target in targets:
        if target not in folders:
            refuse_folder(target)
        elif options.overwrite:
            _refuse_additions(target, folders[target])
        if not options.overwrite:
            refuse_taken(target, "--overwrite or another -o")
    membrane = load_membrane(
        source,
        threshold=options.threshold,
        voxel_spacing=options.voxel_spacing,
        numbers=options.labelling == "keep",
    )
    if not membrane.mask.any():
        raise ValueError(f"{source} holds no membrane: there is nothing to export")
    if "points" in options.formats:  # before a folder is made or anything takes its time
        check_star_name(_tomogram_stem(source, options))
        check_point_spacing(options.point_spacing, membrane.frame)
    if "copick" in options.formats:
        layouts.check_cubic(membrane.frame.spacing)
    _say_what_plays_no_role(source, membrane, options)
    with closing(open_tomogram(source, voxel_spacing=options.voxel_spacing)) as like:
        tomogram = None
        if options.tomogram is not None:
            with closing(open_tomogram(options.tomogram)) as tomogram:
                check_shapes((str(options.tomogram), tomogram), (str(source), like))
        with hidden_folder(home, stem_of(source)) as folder:
            work = _Work(source, like, tomogram, membrane, options, folder)
            for number, kind in enumerate(options.formats):
                if progress is not None:
                    progress("export", number, len(options.formats))
                with naming(home / _name(kind, source)):
                    _export(kind, work, home)
            placed = _placed(folder, home, progress, len(options.formats))
    work.say_if_unlabelled()
    work.say_if_pointless()
    return placed


def _say_what_plays_no_role(source: Path, membrane: Membrane, options: ExportOptions) -> None:
    """Warn of a threshold for a mask, and of numbers that are not kept."""
    if membrane.field is None and options.threshold != LOGIT_THRESHOLD:
        warnings.warn(f"{source} is a mask: --logit-threshold is for logits", stacklevel=3)
    if membrane.numbered and membrane.numbers is None:
        warnings.warn(
            f"{source} holds several numbers above 0: they count as one mask, and membranes are numbered "
            "anew; --keep-labels keeps them",
            stacklevel=3,
        )


def _tomogram_stem(source: Path, options: ExportOptions) -> str:
    if options.tomogram is not None:
        return stem_of(options.tomogram)
    return stem_of(source).removesuffix("_logits").removesuffix("_membrane")


def result_paths(source: Path, options: ExportOptions) -> list[Path]:
    """Return the files and folders that exporting a mask makes."""
    home = _home(source, options)
    paths = [home / _name(kind, source) for kind in options.formats]
    if "labels" in options.formats:
        paths.append((home / _name("labels", source)).with_suffix(".csv"))
    return paths


def _refuse_additions(folder: Path, own: Sequence[str]) -> None:
    """Keep what other programs, or people, have put into a folder that an export made.

    Raises
    ------
    FileExistsError
        There is a file with a name that none of the patterns has.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and not any(fnmatchcase(name, pattern) for pattern in own):
            raise FileExistsError(f"{path} is of no export: move it, or give another -o")


def _home(source: Path, options: ExportOptions) -> Path:
    """Folder of what a mask is exported to."""
    return Path(options.output or whole_volume(source).parent)


def _name(kind: str, source: Path) -> str:
    """Name of what a format writes."""
    stem = stem_of(source)
    names = {
        "labels": f"{stem}_labels.mrc",
        "points": f"{stem}_points.star",
        "midsurface": f"{stem}_midsurface.csv",
        "membrain-pick": f"{stem}_membranes",
        "morphometrics": f"{stem}_morphometrics",
        "copick": f"{stem}_copick",
        "chimerax": f"{stem}.cxc",
    }
    return names.get(kind, f"{stem}.{kind}")


def _export(kind: str, work: _Work, home: Path) -> None:
    target = work.folder / _name(kind, work.source)
    if kind in MESH_FORMATS:
        write_mesh(target, work.mesh(), kind)
    elif kind == "labels":
        found = work.instances()
        label = layouts.INSTANCES if work.membrane.numbers is None else layouts.KEPT
        layouts.write_volume(target, found.labels, work.like, dtype="int16", label=label)
        layouts.write_sizes(target.with_suffix(".csv"), found, work.membrane.frame)
    elif kind == "points":
        surface = work.surface()
        named = work.point_labels()
        points = oriented_points(surface, named, work.membrane.frame, work.options.point_spacing)
        write_star(target, points, work.membrane.frame, work.tomogram_stem)
    elif kind == "midsurface":
        surface = work.surface()
        named = work.point_labels()
        write_mid_surface(target, surface, named, work.thickness(), work.membrane.frame)
    elif kind == "membrain-pick":
        layouts.write_membranes(target, work.instances(), work.like)
    elif kind == "morphometrics":
        names = (work.tomogram_stem, work.options.tomogram)
        layouts.write_morphometrics(target, work.instances(), work.like, names)
    elif kind == "copick":
        run = layouts.copick_name(work.tomogram_stem)
        layouts.write_copick(
            target, home / target.name, run, work.instances(), work.like, work.mesh()
        )
    else:
        _export_chimerax(target, work, home)


def _export_chimerax(target: Path, work: _Work, home: Path) -> None:
    shown = [kind for kind in work.options.formats if kind in MESH_FORMATS and kind != "vtp"][:1]
    shown += ["labels"] if "labels" in work.options.formats else []
    level = 0.5 if work.membrane.field is None else work.options.threshold
    others = [home / _name(kind, work.source) for kind in shown]
    layouts.write_chimerax(target, work.membrane.frame, (work.like, level), work.tomogram, others)


def _placed(folder: Path, home: Path, progress: Progress | None, total: int) -> list[Path]:
    """Move everything to its name, and folders that have it out of the way."""
    placed = []
    for path in sorted(folder.iterdir()):
        target = home / path.name
        if target.is_dir() and not target.is_symlink():
            with suppress(FileNotFoundError):  # another export has moved it
                rename(target, folder / f"{path.name}.replaced")
        rename(path, target)
        placed.append(target)
    if progress is not None:
        progress("export", total, total)
    return placed
