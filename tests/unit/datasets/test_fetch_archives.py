"""Archives, good and malicious: only what is wanted comes out, and nothing lands elsewhere."""

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest

from mlx_trm.datasets.sources import RemoteFolder
from mlx_trm.errors import DataError
from mlx_trm.tasks import fetch_archives
from mlx_trm.tasks.fetch_archives import unpack

FOLDERS = (RemoteFolder("data/training", "training"), RemoteFolder("data/evaluation", "test"))
GOOD = {
    "x/LICENSE": b"mine",
    "x/data/training/b.json": b"{}",
    "x/data/training/a.json": b'{"train": []}' * 9000,
    "x/data/training/notes.txt": b"no",
    "x/data/training/deep/c.json": b"no",
    "x/data/evaluation/a.json": b"[1]",
    "x/data/a.json": b"no",
    "data/training/d.json": b"no",
    "x.json": b"no",
}
LIMIT = 1 << 20


def packed(
    files: Dict[str, bytes], odd: Optional[tarfile.TarInfo] = None, kind: int = tarfile.PAX_FORMAT
) -> bytes:
    """A .tar.gz as GitHub makes it: the commit in a global header, then folders and files."""
    stream = io.BytesIO()
    headers = {"comment": "c" * 40} if kind == tarfile.PAX_FORMAT else None
    with tarfile.open(fileobj=stream, mode="w:gz", format=kind, pax_headers=headers) as archive:
        folder = tarfile.TarInfo("x")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if odd is not None:
            archive.addfile(odd, io.BytesIO(b"evil" if odd.size else b""))
    return stream.getvalue()


def unpacked(content: bytes, folder: Path, limit: int = LIMIT) -> List[Tuple[str, bytes]]:
    """Unpack into ``folder/new``; names and contents of what came."""
    (folder / "a.tar.gz").write_bytes(content)
    (folder / "new").mkdir()
    unpack(folder / "a.tar.gz", FOLDERS, folder / "new", limit)
    files = sorted(path for path in (folder / "new").rglob("*") if path.is_file())
    return [(path.relative_to(folder / "new").as_posix(), path.read_bytes()) for path in files]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_good_archive(tmp_path: Path, kind: int) -> None:
    """The .json files directly in the wanted folders, and nothing else."""
    assert unpacked(packed(GOOD, kind=kind), tmp_path) == [
        ("test/a.json", b"[1]"),
        ("training/a.json", b'{"train": []}' * 9000),
        ("training/b.json", b"{}"),
    ]


def odd(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A member that is not as it should be."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    member.size = 4 if kind == tarfile.REGTYPE else 0
    return member


INSIDE = "x/data/training/z.json"
EVIL = {
    "absolute": (odd("/x/data/training/z.json"), "has an absolute path"),
    "backslash": (odd("\\x\\data\\training\\z.json"), "has an absolute path"),
    "up": (odd("x/data/training/../../../../z.json"), "leads out of its folder"),
    "up-first": (odd("../data/training/z.json"), "leads out of its folder"),
    "up-last": (odd("x/data/training/.."), "leads out of its folder"),
    "up-windows": (odd("x/data/training/..\\..\\z.json"), "has a character"),
    "drive": (odd("C:/data/training/z.json"), "names a drive"),
    "drive-relative": (odd("c:x/data/training/z.json"), "names a drive"),
    "newline": (odd("x/data/training/z\n.json"), "has a character"),
    "link": (odd(INSIDE, tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
    "link-inside": (odd(INSIDE, tarfile.SYMTYPE, "a.json"), "is a link to 'a.json'"),
    "link-unwanted": (odd("x/z", tarfile.SYMTYPE, "data"), "is a link to 'data'"),
    "hard-link": (odd(INSIDE, tarfile.LNKTYPE, "x/data/training/a.json"), "is a link to"),
    "device": (odd(INSIDE, tarfile.CHRTYPE), "is neither a plain file nor a folder"),
    "disk": (odd(INSIDE, tarfile.BLKTYPE), "is neither a plain file nor a folder"),
    "pipe": (odd(INSIDE, tarfile.FIFOTYPE), "is neither a plain file nor a folder"),
    "twice": (odd("x/data/training/a.json"), "is there twice"),
    "twice-on-a-mac": (odd("x/data/training/A.json"), "is there twice"),
    "twice-elsewhere": (odd("y/data/training/a.json"), "is there twice"),
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_members(tmp_path: Path, name: str) -> None:
    """Each is refused by name, and nothing is written outside of the folder."""
    member, says = EVIL[name]
    (tmp_path / "below").mkdir()
    with pytest.raises(DataError) as caught:
        unpacked(packed(GOOD, member), tmp_path / "below")
    assert f"the archive's member {member.name!r} {says}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["below"]
    assert sorted(os.listdir(tmp_path / "below")) == ["a.tar.gz", "new"]
    assert sorted(os.listdir(tmp_path / "below" / "new")) == ["test", "training"]


def test_a_sparse_member(tmp_path: Path) -> None:
    """A file of holes can be endless though little of it is stored: refused."""
    member = odd(INSIDE)
    member.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,4",
        "GNU.sparse.size": str(1 << 50),
        "GNU.sparse.name": INSIDE,
    }
    with pytest.raises(DataError, match="is neither a plain file nor a folder"):
        unpacked(packed(GOOD, member), tmp_path)


@pytest.mark.parametrize("name", ["x/data/training/z.json", "x/other/z.bin"])
def test_a_bomb(tmp_path: Path, name: str) -> None:
    """A megabyte of zeros takes a kilobyte: refused at the limit, wanted or not."""
    content = packed({**GOOD, name: bytes(2 * LIMIT)})
    assert len(content) < 10_000
    with pytest.raises(DataError, match="unpacks to more than the 1,048,576 bytes"):
        unpacked(content, tmp_path)
    total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert total < LIMIT + 10_000


def test_a_bomb_in_a_header(tmp_path: Path) -> None:
    """A header that claims to go on for a gigabyte is not believed."""
    member = tarfile.TarInfo("x/@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(DataError, match="is damaged|unpacks to more"):
        unpacked(gzip.compress(member.tobuf() + bytes(1 << 21)), tmp_path)


def test_too_many_members(tmp_path: Path, monkeypatch: Any) -> None:
    """They are counted."""
    monkeypatch.setattr(fetch_archives, "MOST_MEMBERS", 9)
    with pytest.raises(DataError, match="or 9 members allowed"):
        unpacked(packed(GOOD), tmp_path)


def test_the_limit_is_exact(tmp_path: Path) -> None:
    """The unpacked size itself passes, one byte less does not."""
    content = packed(GOOD)
    size = len(gzip.decompress(content))
    for limit in (size - 1, size):
        folder = tmp_path / str(limit)
        folder.mkdir()
        if limit == size:
            assert len(unpacked(content, folder, limit)) == 3
        else:
            with pytest.raises(DataError, match="unpacks to more"):
                unpacked(content, folder, limit)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_a_cut_archive(tmp_path: Path, share: float) -> None:
    """One line, wherever it ends."""
    content = packed({**GOOD, "x/data/training/r.json": os.urandom(20_000)})
    with pytest.raises(DataError, match=r"^a\.tar\.gz: is damaged: "):
        unpacked(content[: int(len(content) * share)], tmp_path)


@pytest.mark.parametrize("content", [b"hello", b"\x1f\x8bhello", b"PK\x03\x04" + bytes(99)])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    """Text, a broken gzip, a zip."""
    with pytest.raises(DataError, match=r"^a\.tar\.gz: is damaged: "):
        unpacked(content, tmp_path)


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Damage gives one line or, in parts that carry no data, the same files."""
    content = packed(GOOD)
    whole = tmp_path / "whole"
    whole.mkdir()
    right = unpacked(content, whole)
    for place in range(0, len(content), max(1, len(content) // 60)):
        folder = tmp_path / str(place)
        folder.mkdir()
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        try:
            assert unpacked(bytes(damaged), folder) == right
        except DataError:
            pass
