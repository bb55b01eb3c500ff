"""Fetching a set: download what is missing, check it, put it in its place, record it.

Nothing is put in place before it has been checked, and a set of folders comes whole or not at all.
Two processes that fetch into one place take turns.
"""

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Callable, List, NamedTuple, NoReturn, Optional, Tuple

from mlx_trm.datasets.sources import (
    HUGGING_FACE,
    Entry,
    RemoteFile,
    Source,
    fetched_folder,
    find_source,
    read_record,
)
from mlx_trm.errors import DataError
from mlx_trm.tasks.fetch_archives import unpack
from mlx_trm.tasks.fetch_http import (
    Announced,
    DownloadError,
    Patience,
    download,
    forget,
    unwritable,
)
from mlx_trm.tasks.fetch_hub import HubFile, download_with_hub, find_hub
from mlx_trm.tasks.fetch_record import (
    TEMPORARY,
    Files,
    file_facts,
    folder_digest,
    folder_facts,
    place_lock,
    swap_in,
    temporary_folder,
    write_record,
)
from mlx_trm.tasks.fetch_servers import archive_url, file_url, server

LOG = logging.getLogger(__name__)

# More is refused: bytes of a file of unknown size, and multiples of an archive's known size.
MOST_BYTES = 8 << 30
MOST_TIMES = 10

FileProgress = Callable[[str, int, Optional[int]], None]


class FetchOptions(NamedTuple):
    """How to fetch.

    Attributes:
        force: download anew what is there.
        accept_changed: take content that differs from what the first download recorded.
        use_hub: use ``huggingface_hub`` where it is installed.
        quiet: let it show no progress bar.
        patience: how long a download is tried.
    """

    force: bool = False
    accept_changed: bool = False
    use_hub: bool = True
    quiet: bool = True
    patience: Patience = Patience()


class Fetched(NamedTuple):
    """What :func:`fetch` found or brought.

    Attributes:
        source: the set.
        place: where its files are.
        downloaded: whether anything was; otherwise all was there already.
        files: size and SHA-256 of each file, by its name in the place.
    """

    source: Source
    place: Path
    downloaded: bool
    files: Files


def fetch(
    name: str, options: FetchOptions = FetchOptions(), progress: Optional[FileProgress] = None
) -> Fetched:
    """Make sure that a set is there: check what is, download what is not.

    Args:
        name: of the set, such as ``arc1``.
        options: how.
        progress: called with a file's name, the bytes that came and, where known, those that will.

    Returns:
        What is there now.

    Raises:
        DataError: in one line: what did not come, was refused, is in the way or cannot be written.
        ConfigError: for a mirror that is no URL.
    """
    source = find_source(name)
    place = fetched_folder(name)

    def waiting() -> None:
        LOG.info("another process is fetching into %s; waiting for it", place)

    with place_lock(place, waiting):
        try:
            job = _Job(source, place, options, progress)
            files, downloaded = job.folders() if source.folders else job.files()
        except OSError as error:
            raise unwritable(place, error) from error
    return Fetched(source, place, downloaded, files)


class _Job:
    """One call of :func:`fetch`, with the place locked."""

    def __init__(
        self, source: Source, place: Path, options: FetchOptions, progress: Optional[FileProgress]
    ) -> None:
        self.source, self.place, self.options, self.progress = source, place, options, progress
        entry = read_record(place).get(source.name)
        if entry is None or entry.revision != source.revision:
            entry = Entry(source.revision, None, {}, {})
        self.commit = entry.commit
        self.recorded: Files = dict(entry.files)
        for leftover in place.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _announce(self) -> None:
        """Say where it comes from and under which licence, before anything comes."""
        source = self.source
        LOG.info("%s: %s", source.name, source.summary)
        LOG.info("  from     %s, %s", source.repository, source.revision)
        LOG.info("  licence  %s: %s", source.licence, source.page)
        LOG.info("  into     %s", self.place)

    def _record(self, files: Files) -> None:
        """Write down what there is now."""
        self.recorded = files
        source = self.source
        about = {
            "source": source.page,
            "repository": source.repository,
            "licence": source.licence,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_record(self.place, source.name, Entry(source.revision, self.commit, files, about))

    def files(self) -> Tuple[Files, bool]:
        """Fetch a set of single files."""
        there = {file.target: self._check_there(file) for file in self.source.files}
        missing = [file for file in self.source.files if there[file.target] is None]
        found = {name: facts for name, facts in there.items() if facts is not None}
        if missing:
            self._announce()
        elif found != self.recorded:
            self._record(found)
        # All files of a set come from one commit: that of those that are there, or the newest.
        anew = self.options.force or self.options.accept_changed
        revision = self.source.revision if anew else self.commit or self.source.revision
        for file in missing:
            commit = self._get(file, revision)
            if commit is not None:
                self.commit = revision = commit
            found[file.target] = file_facts(self.place / file.target)
            self._record({**self.recorded, **found})
        return {file.target: found[file.target] for file in self.source.files}, bool(missing)

    def _expected(self, file: RemoteFile) -> Optional[str]:
        """The SHA-256 that a file has to have: ours, or the one recorded first."""
        recorded = self.recorded.get(file.target)
        return file.sha256 or (recorded[1] if recorded else None)

    def _check_there(self, file: RemoteFile) -> Optional[Tuple[int, str]]:
        """Return size and SHA-256 of a file that is there and right; None: it has to be fetched."""
        path = self.place / file.target
        if path.is_dir():
            raise DataError(
                f"{path}: is a folder, and a file of that name is fetched; move it away"
            )
        if self.options.force or not path.exists():
            return None
        facts = file_facts(path)
        if self._expected(file) not in (None, facts[1]):
            raise DataError(
                f"{path}: is not the file that was fetched, its SHA-256 differs; move it away, or "
                "replace it by the right one with --force"
            )
        return facts

    def _get(self, file: RemoteFile, revision: str) -> Optional[str]:
        """Download a file, check it, and put it in its place; return the commit."""
        path = self.place / file.target
        part = self.place / f".{file.target}.part"
        url, expected = file_url(self.source, file, revision), self._expected(file)

        promised: List[str] = []

        def inspect(announced: Announced) -> None:
            if announced.sha256 is not None:
                self._check(url, announced.sha256, expected, file.sha256 is not None)
                promised.append(announced.sha256)

        hub = find_hub() if self.source.kind == HUGGING_FACE and self.options.use_hub else None
        if hub is None:
            limit = file.size or MOST_BYTES
            advice = f"put it at {path}"
            commit = self._download(url, part, file.target, limit, inspect, advice)
        else:
            commit = download_with_hub(
                hub,
                HubFile(server("HF_ENDPOINT"), self.source.repository, revision, file.path),
                self.place / f".{file.target}.hub",
                part,
                self.options.patience.timeout,
                self.options.quiet,
                inspect,
            )
        try:
            with open(part, "rb") as content:
                if content.read(64).lstrip()[:1] == b"<":
                    raise DataError(
                        f"{url}: gives a web page, not data; does the network ask first?"
                    )
            sha256 = file_facts(part)[1]
            if promised and sha256 != promised[-1]:
                self._refuse(url, sha256, promised[-1])
            self._check(url, sha256, expected, file.sha256 is not None)
            os.replace(part, path)
        finally:
            forget(part)
        return commit

    def _check(self, url: str, sha256: str, expected: Optional[str], pinned: bool) -> None:
        """Refuse content that is not what was expected, unless the user accepts that."""
        if expected in (None, sha256):
            return
        if pinned:
            self._refuse(url, sha256, expected)
        if not self.options.accept_changed:
            raise DataError(
                f"{url}: has changed since it was first fetched (SHA-256 {sha256}, then "
                f"{expected}); nothing is changed here; --force --accept-changed takes it"
            )
        LOG.info("%s: has changed since it was first fetched; accepted", url)

    def _refuse(self, url: str, sha256: str, expected: Optional[str]) -> NoReturn:
        raise DataError(
            f"{url}: what came is not what is expected (SHA-256 {sha256}, expected {expected}); "
            "it is not kept; fetch again, without mirrors if some are set"
        )

    def _download(
        self,
        url: str,
        part: Path,
        label: str,
        limit: int,
        inspect: Optional[Callable[[Announced], None]],
        advice: str,
    ) -> Optional[str]:
        """Download with the standard library; where that fails, say how to do without."""

        def progress(done: int, total: Optional[int]) -> None:
            if self.progress is not None:
                self.progress(f"{self.source.name} {label}", done, total)

        try:
            return download(url, part, limit, self.options.patience, progress, inspect)
        except DownloadError as error:
            raise DataError(f"{error}; by hand: {advice}, then fetch again") from error

    def folders(self) -> Tuple[Files, bool]:
        """Fetch a set of folders, as an archive."""
        source, targets = self.source, self.source.targets
        there = [target for target in targets if os.path.lexists(self.place / target)]
        for target in there:
            if not (self.place / target).is_dir():
                raise DataError(f"{self.place / target}: is in the way of a folder; move it away")
        if len(there) == len(targets) and not self.options.force:
            found = self._facts(self.place, targets)
            if folder_digest(found) != source.digest:
                self._refuse_there(self.place / targets[0])
            if found != self.recorded:
                self._record(found)
            return found, False
        self._announce()
        url, archive = archive_url(source), self.place / f".{source.name}.tar.gz.part"
        limit = MOST_TIMES * source.archive_size
        moves = " and ".join(f"{f.path} at {self.place / f.target}" for f in source.folders)
        advice = f"unpack it and put {moves}"
        self._download(url, archive, "archive", limit, None, advice)
        try:
            with temporary_folder(self.place) as work:
                new, old = work / "new", work / "old"
                new.mkdir()
                old.mkdir()
                unpack(archive, source.folders, new, limit)
                files = self._facts(new, targets)
                if folder_digest(files) != source.digest:
                    self._refuse(url, folder_digest(files), source.digest)
                self._check_replaceable(there, files)
                swap_in(new, old, self.place, targets)
        finally:
            forget(archive)
        self._record(files)
        return files, True

    def _facts(self, folder: Path, targets: Tuple[str, ...]) -> Files:
        """Size and SHA-256 of everything in some folders."""
        files: Files = {}
        for target in targets:
            files.update(folder_facts(folder / target, target))
        return files

    def _check_replaceable(self, there: List[str], files: Files) -> None:
        """Refuse to replace folders that hold what was not fetched, or, unforced, differ."""
        for target in there:
            found = folder_facts(self.place / target, target)
            foreign = sorted(set(found) - set(files) - set(self.recorded))
            if foreign:
                raise DataError(f"{self.place / foreign[0]}: was not fetched; move it away")
            if not self.options.force and any(files.get(name) != found[name] for name in found):
                self._refuse_there(self.place / target)

    def _refuse_there(self, path: Path) -> NoReturn:
        raise DataError(
            f"{path}: its files are not those that were fetched; move the folder away, or replace "
            "it by the right one with --force"
        )
