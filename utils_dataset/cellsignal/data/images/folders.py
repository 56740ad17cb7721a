"""What lies in folders of images, for reading and for checking alike: links count as what they lead to, systems' own files do not count."""

import os
from collections.abc import Container, Iterator

_SYSTEM = {"Thumbs.db", "ehthumbs.db", "desktop.ini", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir"}


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Files and folders in a folder, without hidden and system ones (.DS_Store, AppleDouble's ._*, Thumbs.db, *:Zone.Identifier).

    None for a folder that is not there or cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not is_system(entry.name)]
    except OSError:
        return []


def is_system(name: str) -> bool:
    """Whether a file or a folder of this name is hidden, or one that operating systems leave among others."""
    return name.startswith(".") or name in _SYSTEM or name.endswith(":Zone.Identifier")


def walk(folder: str, *, named: Container[str]) -> Iterator[str]:
    """The path of every file below a folder, and of folders called *.png; links to folders are followed only to those `named`."""
    for entry in entries(folder):
        inner = entry.is_dir() and (entry.path in named or not entry.is_symlink())  # others may lead anywhere, even back here
        if not inner or entry.name.endswith(".png"):
            yield entry.path
        if inner:
            yield from walk(entry.path, named=named)
