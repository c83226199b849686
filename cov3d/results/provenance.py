"""``predictions.csv.json``: which models and settings made a table, of what scans, and which share of them.

Of each scan, by a hash of its place, a record says what its files were, what was forgiven in it, and where its mask is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cov3d.commit import as_written, commit_json
from cov3d.console import natural
from cov3d.errors import Cov3dError
from cov3d.shards import Shard

# Of a scan: a fingerprint of its files, the kinds of flaws that were forgiven; the name of its mask, and a hash of its folder's
# place.
Record = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """Which share of which scans a part of a table is; parts that belong together differ in the number only.

    ``scans`` counts those of all shares, ``of`` is a hash of their places, ``forgiven`` the kinds of flaws that the last run
    forgave.
    """

    number: int
    count: int
    scans: int
    of: str
    forgiven: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """Who made a table (models, settings), of what scans, and which share it is, if it is not all."""

    made_by: Mapping[str, Any]
    records: Mapping[str, Record]
    share: Share | None = None


def place(path: str | Path) -> str:
    """Where a scan lies, however its path is spelt or written: a hash, since folders may be called as their patients.

    The end of a path may have lost its blanks: cells are read without any.
    """
    return hashlib.sha256(as_written(os.path.realpath(path)).strip().encode()).hexdigest()[:16]


def share_of(shard: Shard, places: Collection[str], forgiven: Collection[str]) -> Share | None:
    """The share of scans that lie at ``places``; None for all of them."""
    of = hashlib.sha256("".join(sorted(places)).encode()).hexdigest()
    return None if shard.whole else Share(shard.number, shard.count, len(places), of, tuple(forgiven))


def provenance_file(output: Path) -> Path:
    """Where it stands: beside the table."""
    return output.with_name(output.name + ".json")


def write_provenance(output: Path, provenance: Provenance, paths: Mapping[str, str]) -> None:
    """Write it; records in natural order of their scans' paths, so that the same answers are the same bytes."""

    def key(k: str) -> tuple[list[tuple[int, int, str]], str]:
        path = as_written(paths[k]).strip()
        return natural(path), path

    share = {} if provenance.share is None else {"share": asdict(provenance.share)}
    records = {k: provenance.records[k] for k in sorted(provenance.records, key=key)}
    commit_json(provenance_file(output), {**provenance.made_by, **share, "scans": records})


def read_provenance(output: Path) -> Provenance:
    """Read it; without records that are damaged.

    Raises:
        Cov3dError: nobody knows who made the table.
    """
    try:
        made_by = json.loads(provenance_file(output).read_text(encoding="utf-8"))
        scans, share = dict(made_by.pop("scans")), made_by.pop("share", None)
        found = None if share is None else Share(**{**share, "forgiven": tuple(share["forgiven"])})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Cov3dError(f"{output}: nobody knows which models made it; begin again with --overwrite") from error
    return Provenance(made_by, {k: record for k, record in scans.items() if _is_record(record)}, found)


def learnt_wholly(output: Path) -> set[str]:
    """Fingerprints of the studies of which a model that made the table learnt every labelled scan."""
    try:
        models = read_provenance(output).made_by["models"]
        return {str(model["learnt_all_of"]) for model in models if model.get("learnt_all_of")}
    except (Cov3dError, KeyError, AttributeError, TypeError):
        return set()


def _is_record(content: Any) -> bool:
    if not isinstance(content, dict) or set(content) - {"mask", "mask_folder"} != {"files", "forgiven"}:
        return False
    mask, folder = content.get("mask", ""), content.get("mask_folder", "")
    if not (isinstance(mask, str) and isinstance(folder, str)) or Path(mask).name != mask:
        return False
    return isinstance(content["forgiven"], list) and all(isinstance(kind, str) for kind in content["forgiven"])
