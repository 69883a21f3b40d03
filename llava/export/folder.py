"""The folder that an export is written to: aside, and renamed when it is complete.

A folder that is there and not empty is refused; `--overwrite` replaces one that an export wrote, no other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava.errors import FileError
from llava.export.certify import FILE_NAME
from llava.model.rewriting import new_folder


def check_folder(target: Path, *, overwrite: bool) -> None:
    """Raise FileError for a folder that an export may not be written to."""
    is_taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if not is_taken or (overwrite and (target / FILE_NAME).is_file()):
        return
    if overwrite:
        raise FileError(
            f"{target} exists and was not written by an export: it has no {FILE_NAME}",
            remedy="Give a new folder, or remove what is there.",
        )
    raise FileError(
        f"{target} exists already", remedy="Give a new folder, or --overwrite to replace an earlier export."
    )


@contextmanager
def export_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder that becomes `target` on success and is removed on an error."""
    check_folder(target, overwrite=overwrite)
    if not target.exists() or not any(target.iterdir()):
        with new_folder(target) as folder:
            yield folder
        return
    replacement = target.with_name(f".{target.name}.new")
    shutil.rmtree(replacement, ignore_errors=True)
    with new_folder(replacement) as folder:
        yield folder
    shutil.rmtree(target)
    replacement.replace(target)
