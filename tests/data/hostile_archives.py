"""Archives that lie, one kind each, written byte by byte: what no honest tool would write."""

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, replace

IMAGE = "images/RPE-01/Plate1/B02_s1_w1.png"
OTHER = "images/RPE-01/Plate1/B02_s1_w2.png"


@dataclass(frozen=True)
class Entry:
    """A member; what is None is what an honest archive would say."""

    name: str | bytes = IMAGE
    content: bytes = b"pixels" * 20
    method: int = 8
    flags: int = 0
    mode: int = stat.S_IFREG | 0o644
    local_name: bytes | None = None
    crc: int | None = None
    packed: bytes | None = None  # the bytes that stand for the content
    packed_size: int | None = None
    size: int | None = None
    offset: int | None = None

    @property
    def raw(self) -> bytes:
        return self.name if isinstance(self.name, bytes) else self.name.encode()

    @property
    def body(self) -> bytes:
        if self.packed is not None:
            return self.packed
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflate.compress(self.content) + deflate.flush() if self.method == 8 else self.content


def craft(*entries: Entry, directory_offset: int | None = None, count: int | None = None) -> bytes:
    """The archive of these members."""
    out, listed = io.BytesIO(), io.BytesIO()
    for entry in entries:
        body, place = entry.body, out.tell() if entry.offset is None else entry.offset
        crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
        sizes = (len(body) if entry.packed_size is None else entry.packed_size, len(entry.content) if entry.size is None else entry.size)
        local = entry.raw if entry.local_name is None else entry.local_name
        flags = entry.flags | (0x800 if not entry.raw.isascii() else 0)
        if entry.offset is None:
            out.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, entry.method, 0, 0, crc, *sizes, len(local), 0) + local + body)
        attributes = (entry.mode << 16) & 0xFFFFFFFF
        listed.write(struct.pack("<4s4B4H3L5H2L", b"PK\1\2", 20, 3, 20, 0, flags, entry.method, 0, 0, crc, *sizes,
                                 len(entry.raw), 0, 0, 0, 0, attributes, place) + entry.raw)  # fmt: skip
    directory = listed.getvalue()
    place = out.tell() if directory_offset is None else directory_offset
    number = len(entries) if count is None else count
    return out.getvalue() + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, len(directory), place, 0)


def honest(content: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive as the standard library writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return out.getvalue()


def _named(name: str | bytes) -> bytes:
    return craft(Entry(), Entry(name=name))


def _kind(kind: int, name: str = OTHER) -> bytes:
    return craft(Entry(), Entry(name=name, mode=kind | 0o777, content=b"/etc/passwd"))


def _overlap(*, shift: int) -> bytes:
    """Two members whose bytes are the same, or the second inside the first."""
    inner = craft(Entry(name=OTHER))[: -(22 + 46 + len(OTHER))]
    outer = Entry(method=0, content=inner)
    place = 0 if shift == 0 else 30 + len(IMAGE)
    second = Entry(name=IMAGE if shift == 0 else OTHER, offset=place)
    return craft(replace(outer, name=OTHER) if shift == 0 else outer, second)


def _tar(kind: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("images/link")
        member.type, member.linkname = kind, "../../outside"
        archive.addfile(member)
    return out.getvalue()


def strange_names() -> dict[str, bytes]:
    """Names that lead out of the folder, or mean something else elsewhere."""
    return {
        "parent": _named("../outside.png"),
        "parent inside": _named("images/../../outside.png"),
        "parent at the end": _named("images/.."),
        "parent after a double slash": _named("images//../../outside.png"),
        "here": _named("./metadata.csv"),
        "dot": _named("."),
        "dots": _named(".."),
        "absolute": _named("/tmp/outside.png"),
        "share": _named("//server/share/outside.png"),
        "drive": _named("C:/outside.png"),
        "drive with a backslash": _named("C:\\outside.png"),
        "backslashes": _named("..\\..\\outside.png"),
        "stream of a file": _named("metadata.csv:hidden"),
        "device of another system": _named("\\\\.\\PHYSICALDRIVE0"),
        "zero byte": _named("metadata.csv\0.png"),
        "line break": _named("metadata\n.csv"),
        "escape sequence": _named("\x1b[2Jmetadata.csv"),
        "wide dots": _named("．．/outside.png"),
        "turned text": _named("gnp.\u202eimages"),
        "not UTF-8": _named(b"images/\xff\xfe.png"),
        "no name": _named(""),
        "endless name": _named("a" * 5000),
    }  # fmt: skip


def strange_kinds() -> dict[str, bytes]:
    """Members that are no files."""
    return {
        "symbolic link": _kind(stat.S_IFLNK),
        "link for a folder": craft(Entry(name="images", mode=stat.S_IFLNK | 0o777, content=b"../outside"), Entry()),
        "link with a slash": _kind(stat.S_IFLNK, "images/"),
        "pipe": _kind(stat.S_IFIFO),
        "character device": _kind(stat.S_IFCHR),
        "block device": _kind(stat.S_IFBLK),
        "socket": _kind(stat.S_IFSOCK),
        "folder without a slash": _kind(stat.S_IFDIR),
    }  # fmt: skip


def _shared_places() -> dict[str, bytes]:
    """Members that share a name, or bytes."""
    return {
        "twice": craft(Entry(), Entry()),
        "twice but for case": craft(Entry(), Entry(name=IMAGE.replace("RPE", "rpe"))),
        "twice by another way": craft(Entry(), Entry(name=f"rxrx1/{IMAGE}")),
        "same bytes for two": _overlap(shift=0),
        "one inside the other": _overlap(shift=1),
        "many on the same bytes": craft(Entry(), *(Entry(name=f"images/RPE-01/Plate1/C{i:02d}_s1_w1.png", offset=0) for i in range(24))),
        "outside the file": craft(Entry(), Entry(name=OTHER, offset=1 << 30)),
        "packed size beyond the file": craft(Entry(packed_size=1 << 30)),
        "no header there": craft(Entry(), Entry(name=OTHER, offset=3)),
    }  # fmt: skip


def _lies() -> dict[str, bytes]:
    """Members that are not what the list says, or far more than it says."""
    deflated, zeros = Entry().body, b"\0" * (3 << 20)
    return {
        "encrypted": craft(Entry(flags=0x1)),
        "strongly encrypted": craft(Entry(flags=0x41)),
        "masked": craft(Entry(flags=0x2000)),
        "a patch": craft(Entry(flags=0x20)),
        "bzip2": craft(Entry(method=12)),
        "lzma": craft(Entry(method=14)),
        "unknown method": craft(Entry(method=99)),
        "bomb": craft(Entry(content=zeros)),
        "bomb of a table": craft(Entry(name="metadata.csv", content=zeros * 20)),
        "image of 4 GB": craft(Entry(size=0xFFFFFFF0)),
        "table of 4 GB": craft(Entry(name="metadata.csv", size=0xFFFFFFF0)),
        "more announced than comes": craft(Entry(size=500)),
        "less announced than comes": craft(Entry(size=50)),
        "less announced than comes, sum of the lie": craft(Entry(size=50, crc=zlib.crc32(b"pixels" * 20))),
        "more announced, stored": craft(Entry(method=0, size=500), Entry(name=OTHER)),
        "wrong sum": craft(Entry(crc=1)),
        "second one damaged": craft(Entry(), Entry(name=OTHER, crc=1)),
        "damaged stream": craft(Entry(packed=b"\xff" * len(deflated))),
        "stream cut short": craft(Entry(packed=deflated[:-3])),
        "another name in its header": craft(Entry(local_name=OTHER.encode())),
    }  # fmt: skip


def _broken() -> dict[str, bytes]:
    """What is no archive, or no whole one."""
    good = craft(Entry(), Entry(name=OTHER))
    return {
        "cut in the middle": good[: len(good) // 3],
        "cut in the list": good[:-30],
        "list somewhere else": craft(Entry(), directory_offset=0xFFFFFF00),
        "empty file": b"",
        "no member": craft(),
        "only an end record of zip64": b"PK\6\7" + b"\0" * 16 + craft(),
        "page of a login": b"<!doctype html><title>Sign in</title>" * 20,
        "gzip": b"\x1f\x8b\x08" + b"\0" * 200,
        "noise": bytes(range(256)) * 9,
        "tar with a link": _tar(tarfile.SYMTYPE),
        "tar with a hard link": _tar(tarfile.LNKTYPE),
        "tar with a device": _tar(tarfile.CHRTYPE),
    }  # fmt: skip


def _nested() -> dict[str, bytes]:
    """Archives within, and more members than anybody wants."""
    zeros = b"\0" * (3 << 20)
    return {
        "only strange files": honest({"evil.py": b"import os", "run.sh": b"rm -rf /", "images/x.svg": b"<script>"}),
        "a hundred thousand members": craft(*(Entry(name=f"{i}", method=0, content=b"") for i in range(100_000)), count=1000),
        "bomb in an archive inside": honest({"train.zip": craft(Entry(name="RPE-01/Plate1/B02_s1_w1.png", content=zeros))}),
        "parent in an archive inside": honest({"train.zip": craft(Entry(name="../../outside.png"))}),
        "link in an archive inside": honest({"test.zip": craft(Entry(name="RPE-01", mode=stat.S_IFLNK | 0o777))}),
        "itself inside": honest({"train.zip": honest({"train.zip": honest({"train.zip": b""})})}),
    }  # fmt: skip


def archives() -> dict[str, bytes]:
    """Name of the attack: its bytes."""
    return strange_names() | strange_kinds() | _shared_places() | _lies() | _broken() | _nested()
