"""Tomograms where copick projects and the CryoET Data Portal keep them, and where their masks go."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from etsam.ngff_metadata import read_json
from etsam.volume import folder_spacing, stem_of

COPICK_RUNS = "ExperimentRuns"
COPICK_SEGMENTATIONS = "Segmentations"
COPICK_USER = "etsam"
NOT_IN_COPICK_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\s_]+')
LOCAL = ("", "file", "local")  # fsspec's names for the disks of this machine
SAME_SPACING = 0.0015  # Å; names of folders have three decimals


@dataclass(frozen=True)
class Member:
    """What a tomogram is in its project.

    Attributes
    ----------
    run, spacing
        Name of the run, ``{dataset}_{run}`` of one that `etsam download` fetched; voxel spacing in Å, as the
        folder's name has it, None where it has none.
    kind
        copick's tomogram type; of a portal's tomogram the number of its folder, such as 100.
    copick
        Folder that copick writes into; None for a run of the portal.
    """

    run: str
    spacing: float | None
    kind: str
    copick: Path | None = None


def is_copick(path: Path) -> bool:
    """Whether a path is the folder of a copick project."""
    return (path / COPICK_RUNS).is_dir()


def copick_tomograms(path: Path) -> dict[Path, Member]:
    """Find the tomograms of a copick project, given by its config (JSON) or its folder.

    Those of ``static_root`` come first; a tomogram that ``overlay_root`` has too is taken once.

    Raises
    ------
    ValueError
        The file is not a config of copick, or the project is not on this machine's disks.
    FileNotFoundError
        It has no tomogram.
    """
    roots = [path] if path.is_dir() else _roots(path)
    overlay = roots[-1]
    found: dict[Member, Path] = {}
    for root in roots:
        for tomogram, member in _in_root(root):
            found.setdefault(replace(member, copick=overlay), tomogram)
    if not found:
        places = " or ".join(str(root / COPICK_RUNS) for root in roots)
        raise FileNotFoundError(
            f"{path} has no tomogram: expected {{run}}/VoxelSpacing{{Å}}/{{type}}.zarr in {places}"
        )
    ordered = sorted(found.items(), key=lambda pair: (pair[0].run, pair[0].spacing, pair[0].kind))
    return {tomogram: member for member, tomogram in ordered}


def _in_root(root: Path) -> Iterator[tuple[Path, Member]]:
    for path in (root / COPICK_RUNS).glob("*/VoxelSpacing*/*.zarr"):
        member = member_of(path)
        if member is not None and path.is_dir() and not _is_hidden(path, root):
            yield path, member


def _is_hidden(path: Path, root: Path) -> bool:
    """Whether copick leaves a Zarr out: hidden, or features of a tomogram."""
    parts = path.relative_to(root).parts
    return "features" in path.name or any(part.startswith(".") for part in parts)


def _roots(config: Path) -> list[Path]:
    """Folders that a config names: static_root where there is one, overlay_root last."""
    content = read_json(config)
    if content.get("config_type", "filesystem") != "filesystem":
        raise ValueError(
            f"{config} is a copick project on a server ({content['config_type']!r:.40}): download its "
            "runs and give their folder"
        )
    if "overlay_root" not in content:
        raise ValueError(f"{config} is not the config of a copick project: it has no overlay_root")
    roots = [
        _local_folder(config, content[key])
        for key in ("static_root", "overlay_root")
        if content.get(key) is not None
    ]
    return list(dict.fromkeys(roots))


def _local_folder(config: Path, root: Any) -> Path:
    protocol, separator, name = str(root).rpartition("://")
    if not isinstance(root, str) or not name or protocol not in LOCAL:
        raise ValueError(
            f"{config}: {str(root)[:80]!r} is not a folder of this machine: mount or copy it, and name it "
            "local:///path"
        )
    return Path(name if separator else root).expanduser().absolute()


def member_of(path: Path) -> Member | None:
    """What a tomogram is, by the folders it lies in; None outside of projects."""
    parts = path.absolute().parts
    spacing = folder_spacing(path)
    if spacing is None:
        return None
    if parts[-4:-3] == (COPICK_RUNS,) and path.suffix.lower() == ".zarr":
        return Member(parts[-3], spacing, path.stem, path.absolute().parents[3])
    if parts[-3:-2] == ("Tomograms",) and parts[-5:-4] == ("Reconstructions",) and len(parts) > 6:
        return Member(parts[-6], spacing, parts[-2])
    return None


def select(members: dict[Path, Member | None], text: str) -> list[Path]:
    """Return the tomograms of projects that ``TYPE@SPACING`` names; ``*`` stands for anything.

    Raises
    ------
    ValueError
        The text is not of that form.
    FileNotFoundError
        There is none; the message lists what there is.
    """
    kind, separator, number = text.partition("@")
    anywhere = number in ("", "*")
    try:
        spacing = 0.0 if anywhere else float(number)
    except ValueError:
        spacing = math.inf
    if not kind or (separator and not number) or not math.isfinite(spacing):
        raise ValueError(f"{text!r}: expected TYPE@SPACING, such as wbp@10.012, or TYPE alone")
    known = {
        path: (member.kind, member.spacing)
        for path, member in members.items()
        if member is not None and member.spacing is not None
    }
    chosen = [
        path
        for path, (own, size) in known.items()
        if fnmatchcase(own, kind) and (anywhere or abs(size - spacing) <= SAME_SPACING)
    ]
    if not chosen:
        there = sorted({f"{own}@{size:.3f}" for own, size in known.values()})
        raise FileNotFoundError(
            f"no tomogram is {text}: there are {', '.join(there[:20]) or 'no projects'}"
        )
    return chosen


def mask_in_folder(path: Path, member: Member, folder: Path) -> Path:
    """Where a mask goes in a folder that holds masks of many runs: the name says which."""
    stem = stem_of(path)
    names = [member.run]
    if member.spacing is not None:
        names += [f"{member.spacing:.3f}", member.kind]
        names += [] if stem in (member.run, member.kind) else [stem]
    suffix = ".zarr" if path.suffix.lower() == ".zarr" else ".mrc"
    return folder / f"{'_'.join(names)}_membrane{suffix}"


def mask_in_copick(path: Path, member: Member | None) -> Path:
    """Where a mask goes as a segmentation of its copick project.

    Its user is ``etsam``, its session the type of the tomogram, its object ``membrane``.

    Raises
    ------
    ValueError
        The tomogram is not of a copick project.
    """
    if member is None or member.copick is None:
        raise ValueError(f"{path} is not in a copick project: use --output instead of --copick")
    session = NOT_IN_COPICK_NAMES.sub("-", member.kind).strip("-") or "0"
    name = f"{member.spacing:.3f}_{COPICK_USER}_{session}_membrane.zarr"
    return member.copick / COPICK_RUNS / member.run / COPICK_SEGMENTATIONS / name


def is_segmentation(mask: Path) -> bool:
    """Whether a mask lies among the segmentations of a copick project."""
    return mask.parent.name == COPICK_SEGMENTATIONS
