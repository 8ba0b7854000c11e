"""What a Zenodo record or a Dataverse data set holds: files with sizes and checksums, by DOI."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from typing import Any

from etsam.fetch import Patience, RemoteFile, known_checksum, read_json

ZENODO = "https://zenodo.org"
DATAVERSE = "https://dataverse.harvard.edu"
ETSAM_DATA = "10.7910/DVN/K4JKCW"
"""The paper's tomograms and masks: folders ``{dataset}/{run}/tomogram`` and ``.../target_mask``."""

DOI = re.compile(r"^(?:doi:|https?://(?:dx\.)?doi\.org/)?(10\.\d{4,9}/[^\s?#]+)$", re.IGNORECASE)
ZENODO_DOI = re.compile(r"^10\.5281/zenodo\.(\d+)$", re.IGNORECASE)


def doi_of(text: str) -> str | None:
    """The DOI in ``10.5281/...``, ``doi:10.5281/...`` or ``https://doi.org/10.5281/...``, else None."""
    found = DOI.match(text.strip())
    return found[1].rstrip("/") if found else None


def record_files(
    doi: str,
    *,
    zenodo: str = ZENODO,
    dataverse: str = DATAVERSE,
    patience: Patience | None = None,
) -> list[RemoteFile]:
    """List the files of a DOI; all DOIs that are not Zenodo's are looked for in the Dataverse.

    Raises
    ------
    FileNotFoundError, OSError
        The server has no such record, does not answer, or not as its kind does.
    """
    if number := ZENODO_DOI.match(doi):
        return zenodo_files(int(number[1]), server=zenodo, patience=patience)
    return dataverse_files(doi, server=dataverse, patience=patience)


def zenodo_files(
    record: int, *, server: str = ZENODO, patience: Patience | None = None
) -> list[RemoteFile]:
    """List the files of a Zenodo record, with MD5 sums.

    Raises
    ------
    FileNotFoundError, OSError
        As `record_files`.
    """
    url = f"{server}/api/records/{record}"
    answer = read_json(url, patience)
    try:
        return [
            RemoteFile(
                url=str(file["links"]["self"]),
                name=str(file["key"]),
                size=None if file.get("size") is None else int(file["size"]),
                checksum=known_checksum(*str(file["checksum"]).split(":", 1)),
            )
            for file in answer["files"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{url} did not answer as Zenodo's API does") from error


def dataverse_files(
    doi: str, *, server: str = DATAVERSE, patience: Patience | None = None
) -> list[RemoteFile]:
    """List the files of the latest version of a Dataverse data set, in their folders, with sums.

    Tables that Dataverse has converted are taken as they were uploaded; their sums are of the
    conversion and are left out (https://github.com/IQSS/dataverse/issues/9501).

    Raises
    ------
    FileNotFoundError, OSError
        As `record_files`.
    """
    query = urllib.parse.urlencode({"persistentId": f"doi:{doi}"})
    url = f"{server}/api/datasets/:persistentId/?{query}"
    answer = read_json(url, patience)
    try:
        return list(_dataverse_entries(answer["data"]["latestVersion"]["files"], server))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{url} did not answer as Dataverse's API does") from error


def _dataverse_entries(files: Iterable[dict[str, Any]], server: str) -> Iterable[RemoteFile]:
    for file in files:
        data = file["dataFile"]
        converted = data.get("originalFileFormat") is not None
        name = str((data.get("originalFileName") if converted else None) or file["label"])
        folder = str(file.get("directoryLabel") or "").strip("/")
        size = data.get("originalFileSize" if converted else "filesize")
        total = data.get("checksum") or {"type": "MD5", "value": data.get("md5") or ""}
        yield RemoteFile(
            url=f"{server}/api/access/datafile/{int(data['id'])}"
            + ("?format=original" if converted else ""),
            name=f"{folder}/{name}" if folder else name,
            size=None if size is None else int(size),
            checksum=None if converted else known_checksum(total["type"], total["value"]),
        )
