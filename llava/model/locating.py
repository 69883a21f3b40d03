"""From a path or hub id to a folder on this machine, for checkpoints and for vision towers."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llava.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkpoint: an existing one, else a hub id's snapshot.

    Raises CheckpointError when there is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file", remedy="Give the folder that it lies in.")
    if _looks_like_hub_id(str(path)):
        return _snapshot(str(path))
    raise CheckpointError(f"{path} does not exist", remedy="Give the folder of a checkpoint.")


def tower_folder(tower: str, checkpoint: Path) -> Path:
    """Return the folder of `mm_vision_tower`.

    A path is looked for as it stands (a relative one from the working directory), then beside the checkpoint
    (in it and in the folders above it, also by its last part alone: a folder that was moved with its tower),
    then on the hub when it looks like a hub id.
    Raises CheckpointError naming the places looked at.
    """
    given = Path(tower).expanduser()
    if given.is_dir():
        return given
    above = [checkpoint.resolve(), *checkpoint.resolve().parents][:4]
    named = (Path(given.name),) if given.is_absolute() else (given, Path(given.name))
    for candidate in (folder / part for folder in above for part in named):
        if (candidate / "config.json").is_file():
            return candidate
    if _looks_like_hub_id(tower):
        return _snapshot(tower)
    raise CheckpointError(
        f"The vision tower {tower!r} is neither below the working directory nor beside {checkpoint}",
        remedy=f"Put the tower's folder there as {checkpoint.resolve().parent / given.name}.",
    )


def _looks_like_hub_id(text: str) -> bool:
    return _HUB_ID.fullmatch(text) is not None


def _snapshot(hub_id: str) -> Path:
    """Return the hub's files of a repository, from the cache or downloaded."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.model", "*.safetensors", "*.bin", "*.txt"]
    try:
        return Path(
            snapshot_download(
                hub_id, allow_patterns=patterns, local_files_only=bool(constants.HF_HUB_OFFLINE)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{hub_id} is no folder here, and cannot be had from the hub ({reason})",
            remedy="Give the path of a folder, or download it first.",
        ) from error
