"""Why a file cannot be read as weights, in the words of users rather than torch's."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from pathlib import Path

UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What `torch.load` raises on damaged files."""

REFUSED_OBJECT = re.compile(r"GLOBAL (\S+)")

FIRST_BYTES = {
    b"<!doctype html": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
    b"version https://git-lfs": "a pointer of Git LFS: get the file itself with `git lfs pull`",
    b"\x93numpy": "a NumPy array",
    b"\x89hdf": "an HDF5 file",
}
"""How files begin that are taken for weights, in small letters."""


def no_weights(path: Path, why: str) -> str:
    """The line that refuses a file in PyTorch's format."""
    return (
        f"{path} cannot be read as weights ({why}); expected a file saved by torch.save that holds "
        "tensors only, as torch.save(network.state_dict(), ...) writes"
    )


def why_unreadable(path: Path, wrong: BaseException) -> str:
    """In a few words why `torch.load` refused a file: its own are pages, or a bare number."""
    if path.stat().st_size == 0:
        return "it is empty"
    if kind := kind_of(path):
        return f"it is {kind}"
    if isinstance(wrong, pickle.UnpicklingError) and (found := REFUSED_OBJECT.search(str(wrong))):
        return f"it holds other objects, such as {found[1][:80]}"
    if isinstance(wrong, RuntimeError) and "allocate memory" in str(wrong):
        return "there is too little memory for it"
    if _is_cut(path):
        return "it is damaged or cut short: not a ZIP archive"
    return "it is damaged, or of another kind"


def kind_of(path: Path) -> str:
    """What a file is that is no checkpoint, by its first bytes; empty where these do not tell."""
    begins = _begins(path)
    is_safe = path.suffix.lower() == ".safetensors"
    if not is_safe and begins[8:10] == b'{"':
        return "a safetensors file: give it that ending"
    if is_safe and begins.startswith((b"PK", b"\x80\x02")) and begins[8:9] != b"{":
        return "a file in PyTorch's format: give it the ending .pt"
    text = begins.lstrip().lower()
    return next((kind for start, kind in FIRST_BYTES.items() if text.startswith(start)), "")


def refuse_cut(path: Path) -> None:
    """Refuse an archive whose end is missing: to some of them torch.load says "Invalid argument".

    Raises
    ------
    EOFError
        It is; `why_unreadable` says so in words.
    """
    if _is_cut(path):
        raise EOFError(path)


def _is_cut(path: Path) -> bool:
    try:
        return _begins(path).startswith(b"PK") and not zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end says that there are further disks
        return True


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def check_archive(path: Path) -> None:
    """Refuse an archive of other things, or one that is packed or damaged: torch.load checks neither.

    What is no archive is left to torch.load.

    Raises
    ------
    ValueError
        It is one of these.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, *UNREADABLE):
        return
    with archive:
        entries = archive.infolist()
        if kind := _kind_of_archive([entry.filename for entry in entries]):
            raise ValueError(no_weights(path, f"it is {kind}"))
        unpacked = sum(entry.file_size for entry in entries)
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or unpacked > path.stat().st_size:
            raise ValueError(
                f"{path} is packed and unpacks to {unpacked:,} bytes: expected a file saved by "
                "torch.save, which packs nothing"
            )
        try:
            damaged = archive.testzip()
        except (OSError, *UNREADABLE):
            damaged = "its list of contents"
    if damaged is not None:
        raise ValueError(
            f"{path} cannot be read as weights ({damaged[:80]} is damaged): copy or fetch it again"
        )


def _kind_of_archive(names: list[str]) -> str:
    """What an archive is that `torch.save` did not write; empty for one that it may have written."""
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program: save the state_dict of the network it was made of"
    if any(name.endswith("/data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays"
    return "a zip archive of other things"
