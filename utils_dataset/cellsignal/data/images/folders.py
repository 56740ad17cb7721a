"""Listing folders of images without the files of operating systems; links are followed."""

import os
from collections.abc import Container, Iterator

_SYSTEM = {"Thumbs.db", "ehthumbs.db", "desktop.ini", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir"}


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Files and folders in a folder, without hidden and system ones (.DS_Store, AppleDouble's ._*, Thumbs.db, *:Zone.Identifier).

    An empty list for a folder that does not exist or cannot be read.
    """
    try:
        with os.scandir(folder) as listing:
            return [entry for entry in listing if not is_system(entry.name)]
    except OSError:
        return []


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden or created by an operating system."""
    return name.startswith(".") or name in _SYSTEM or name.endswith(":Zone.Identifier")


def walk(folder: str, *, follow_links: Container[str]) -> Iterator[str]:
    """The path of every file below a folder, and of folders named *.png; links to folders only if in `follow_links`."""
    for entry in entries(folder):
        is_folder = entry.is_dir() and (entry.path in follow_links or not entry.is_symlink())  # others may lead anywhere, even back here
        if not is_folder or entry.name.endswith(".png"):
            yield entry.path
        if is_folder:
            yield from walk(entry.path, follow_links=follow_links)
