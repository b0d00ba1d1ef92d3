"""Which paths a pattern matches, as `glob.glob` has it, but for one thing: a folder that cannot be read is told.

`glob.glob` passes over it, and what is in it would be missing from a corpus without a word.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path


def fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard."""
    for index, part in enumerate(pattern.parts):
        if glob.has_magic(part):
            return Path(*pattern.parts[:index])
    return pattern.parent


def expanded(pattern: Path) -> Iterator[Path]:
    """What an absolute pattern matches, some of it perhaps twice.

    Raises:
        OSError: a folder that the pattern leads into may not be entered.
    """
    root = fixed_part(pattern)
    yield from _expanded(root, pattern.parts[len(root.parts) :])


def _expanded(place: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What the parts of a pattern match there."""
    if not parts:
        yield place
        return
    part, rest = parts[0], parts[1:]
    if not glob.has_magic(part):
        if _mode(place / part, follow_symlinks=False):
            yield from _expanded(place / part, rest)
    elif stat.S_ISDIR(_mode(place)):
        for path in _at_any_depth(place, with_files=not rest) if part == "**" else _named(place, part):
            yield from _expanded(path, rest)


def _named(folder: Path, pattern: str) -> Iterator[Path]:
    for path in folder.iterdir():
        if fnmatch.fnmatch(path.name, pattern) and (pattern.startswith(".") or not path.name.startswith(".")):
            yield path


def _at_any_depth(folder: Path, *, with_files: bool) -> Iterator[Path]:
    """A folder and all that are in it but for hidden ones, those too that a link leads to."""
    for place, folders, files in os.walk(folder, onerror=_stop_unless_circle, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield Path(place)
        if with_files:
            yield from (Path(place, name) for name in files if not name.startswith("."))


def _mode(path: Path, *, follow_symlinks: bool = True) -> int:
    """The kind of what is there; 0 where there is nothing."""
    try:
        return path.stat(follow_symlinks=follow_symlinks).st_mode
    except ValueError:  # a name that no file can have
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            _stop_unless_circle(error)
        return 0


def _stop_unless_circle(error: OSError) -> None:
    """A circle of links ends where names become too long: what is in it was met under a shorter one."""
    place = Path(error.filename)
    if error.errno != errno.ENAMETOOLONG or place.resolve() == place:
        raise error
