"""Fetching a set: download what is missing, check it, put it in its place, record it.

The transfer itself is done by libraries, which come with the extra ``fetch`` and are imported where
they are used: ``huggingface_hub`` for Hugging Face, ``pooch`` for plain files, ``filelock`` so that
two processes that fetch into one place take turns. Files come into a hidden folder of the place;
only when all of them are there and right are they moved to their names.
"""

import logging
import os
import shutil
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from mlx_trm.datasets.sources import (
    RECORD,
    RECORD_FORMAT,
    Entry,
    Files,
    RemoteFile,
    Source,
    fetched_folder,
    find_source,
    read_record,
)
from mlx_trm.datasets.watching import hash_blob, watch
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.system.files import cache_folder, hash_file, write_json

LOG = logging.getLogger(__name__)

# Where files are until all of a set have come; what broke off stays there to be gone on with.
PARTIAL = ".partial"
# More attempts for a plain file, a second or two apart; huggingface_hub has its own.
RETRIES = 2


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


class _Job(NamedTuple):
    """What :func:`fetch` was asked for, handed to all that takes part."""

    source: Source
    place: Path
    timeout: float
    progress: bool


def fetch(name: str, force: bool = False, timeout: float = 30.0, progress: bool = False) -> Fetched:
    """Make sure that a set is there: check what is, download what is not.

    Args:
        name: of the set, such as ``arc1``.
        force: download anew what is there, and replace it.
        timeout: seconds that a server may send nothing.
        progress: show bars on standard error.

    Returns:
        What is there now.

    Raises:
        DataError: in one line: what did not come, was refused, is in the way or cannot be written.
        ConfigError: if the libraries are not installed.
    """
    source, place = find_source(name), fetched_folder(name)
    check_libraries()
    for path in (place, _lock_path(place), place / PARTIAL):
        _check_inside_cache(path)
    try:
        with _locked(place):
            return _fetch_locked(_Job(source, place, timeout, progress), force)
    except OSError as error:
        raise DataError(
            f"{error.filename or place}: cannot be read or written: {error.strerror or error}; "
            "MLX_TRM_CACHE can name another folder"
        ) from error


def check_libraries() -> None:
    """Refuse where the libraries that fetch are missing.

    Raises:
        ConfigError: saying what to install.
    """
    try:
        # pylint: disable=unused-import
        import filelock  # noqa: F401
        import huggingface_hub  # noqa: F401
        import pooch  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "data fetch: needs huggingface_hub, pooch and filelock; "
            'pip install "mlx-trm[fetch]", or in a checkout pip install -e ".[fetch]"'
        ) from error


def _check_inside_cache(path: Path) -> None:
    """Refuse to write where a link leads out of the cache folder."""
    if Path(os.path.realpath(cache_folder())) not in Path(os.path.realpath(path)).parents:
        raise DataError(
            f"{path}: a link leads out of the cache folder; remove it, or let MLX_TRM_CACHE name "
            "the folder that it leads to"
        )


def _lock_path(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Make a place, and let no other process change it inside a ``with`` block.

    The system takes the lock away from a process that ends, however it ends. A place that is empty
    in the end is removed.
    """
    import filelock

    place.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(str(_lock_path(place)))
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        LOG.info("another process is fetching into %s; waiting for it", place)
        held = lock.acquire()
    with held:
        try:
            place.mkdir(exist_ok=True)
            yield
        finally:
            for folder in (place / PARTIAL, place):
                with suppress(OSError):  # it holds something, as it should
                    folder.rmdir()


def _fetch_locked(job: _Job, force: bool) -> Fetched:
    """Do the work of :func:`fetch`, with the place locked."""
    source, place = job.source, job.place
    record = read_record(place)
    entry = (None if force else record.get(source.name)) or Entry({}, None, {})
    recorded: Dict[str, Optional[str]] = {name: facts[1] for name, facts in entry.files.items()}
    digests = {file.target: file.sha256 or recorded.get(file.target) for file in source.files}
    for path in (place / target for target in digests):
        if path.is_dir():
            raise DataError(
                f"{path}: is a folder, and a file of that name is fetched; move it away"
            )
    found = {} if force else _check_present(place, digests)
    missing = [file for file in source.files if file.target not in found]
    commit = entry.commit
    if missing:
        new, commit = _download(job, missing, commit, digests)
        found.update(new)
    files = {file.target: found[file.target] for file in source.files}
    if (files, commit) != (entry.files, entry.commit):
        about = {
            "revision": source.revision,
            "commit": commit,
            "files": {name: {"size": size, "sha256": sha} for name, (size, sha) in files.items()},
        }
        _write_record(place, {**record, source.name: Entry(files, commit, about)})
    return Fetched(source, place, bool(missing), files)


def _facts(path: Path) -> Tuple[int, str]:
    """Return a file's size and SHA-256."""
    return path.stat().st_size, hash_file(path)


def _check_present(place: Path, digests: Dict[str, Optional[str]]) -> Files:
    """Return size and SHA-256 of the files that are there; refuse one that is not the right one."""
    found = {name: _facts(place / name) for name in digests if (place / name).exists()}
    for name, (_, sha256) in found.items():
        if digests[name] not in (None, sha256):
            raise DataError(
                f"{place / name}: is not the file that was fetched, its SHA-256 differs; move it "
                "away, or replace it by the right one with --force"
            )
    return found


def _download(
    job: _Job, files: List[RemoteFile], commit: Optional[str], digests: Dict[str, Optional[str]]
) -> Tuple[Files, Optional[str]]:
    """Say what comes from where, download it, and move it to its names when all is there.

    Returns:
        Size and SHA-256 of the files, and the commit that the server named.
    """
    source, place = job.source, job.place
    LOG.info("%s: %s", source.name, source.summary)
    LOG.info("  from     %s, %s", source.repository, source.revision)
    LOG.info("  licence  %s: %s", source.licence, source.page)
    LOG.info("  into     %s", place)
    folder = place / PARTIAL
    folder.mkdir(exist_ok=True)
    if source.base_url is not None:
        _download_plain(job, files)
    else:
        # All files of a set come from one commit: that of those that are there, or the newest.
        commit = _download_hub(job, files, commit or source.revision, digests)
    found = {file.target: _facts(folder / file.target) for file in files}
    for name in found:
        os.replace(folder / name, place / name)
    shutil.rmtree(folder)
    return found, commit


def _download_plain(job: _Job, files: List[RemoteFile]) -> None:
    """Download files whose digests are known; ``pooch`` refuses any other content."""
    import pooch
    from tqdm import tqdm

    pooch.get_logger().setLevel("WARNING")  # what it would say has been said
    keeper = pooch.create(
        path=job.place / PARTIAL,
        base_url="",
        registry={file.target: f"sha256:{file.sha256}" for file in files},
        urls={file.target: job.source.url(file) for file in files},
        retry_if_failed=RETRIES,
    )
    for file in files:
        label = f"{job.source.name} {file.target}"
        bar = tqdm(desc=label, total=file.size, unit="B", unit_scale=True, leave=False,
                   disable=not job.progress)  # fmt: skip
        # Compressed on its way, a file would have another size than the bar is told.
        headers = {"Accept-Encoding": "identity"}
        downloader = pooch.HTTPDownloader(bar, 1 << 16, timeout=job.timeout, headers=headers)
        work = partial(keeper.fetch, file.target, downloader=downloader)
        with bar, _one_line(job, file):
            watch(work, job.place / PARTIAL, file.size)


def _download_hub(
    job: _Job, files: List[RemoteFile], revision: str, known: Dict[str, Optional[str]]
) -> Optional[str]:
    """Download files of a data set of Hugging Face; what broke off is gone on with.

    Args:
        job: says which set.
        files: of the set.
        revision: a branch or a commit.
        known: SHA-256 of each file; where there is none, the server's word is taken.

    Returns:
        The commit that the server named, if it did.
    """
    import huggingface_hub

    repository, folder = job.source.repository, job.place / PARTIAL
    # Read here, for the library reads it only once, when it is first imported.
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    with _one_line(job, files[0]):
        about = api.dataset_info(
            repository, revision=revision, files_metadata=True, timeout=job.timeout
        )
    siblings = {each.rfilename: each for each in about.siblings or []}
    promised = {name: each.lfs.sha256 for name, each in siblings.items() if each.lfs}
    for file in files:
        said = siblings.get(file.path)
        expected = known.get(file.target) or promised.get(file.path)
        # A small file has no SHA-256 there, but git's name: parts of two versions have neither.
        blob = said.blob_id if expected is None and said is not None else None
        # Where neither is known, nothing that broke off is gone on with, and what comes has to be
        # of one version from its first byte to its last.
        unknown = expected is None and blob is None
        version = _version(job, file, api.endpoint, about.sha or revision) if unknown else None
        work = partial(
            api.hf_hub_download,
            repository,
            file.path,
            repo_type="dataset",
            revision=about.sha or revision,
            local_dir=folder,
            etag_timeout=job.timeout,
            force_download=unknown,
        )
        with _one_line(job, file), hub_bars(job.progress):
            watch(work, folder, said.size if said is not None else None)
        sha256 = hash_file(folder / file.target)
        if unknown and version != _version(job, file, api.endpoint, about.sha or revision):
            shutil.rmtree(folder)
            raise DataError(
                f"{job.source.url(file)}: was changed while it came; it is not kept; try again"
            )
        if expected not in (None, sha256) or blob not in (None, hash_blob(folder / file.target)):
            # Left there, it would count as downloaded the next time.
            shutil.rmtree(folder)
            raise DataError(
                f"{job.source.url(file)}: what came is not what is expected (SHA-256 {sha256}, "
                f"expected {expected or blob}); it is not kept; "
                "--force takes a set that has changed"
            )
    return about.sha


def _version(job: _Job, file: RemoteFile, endpoint: str, revision: str) -> Tuple[object, ...]:
    """Ask what tells versions of a file apart: its ETag, size and commit."""
    import huggingface_hub

    repository = job.source.repository
    url = huggingface_hub.hf_hub_url(
        repository, file.path, repo_type="dataset", revision=revision, endpoint=endpoint
    )
    with _one_line(job, file):
        found = huggingface_hub.get_hf_file_metadata(url, timeout=job.timeout)
    return found.etag, found.size, found.commit_hash


@contextmanager
def hub_bars(shown: bool) -> Iterator[None]:
    """Hide the progress bars of ``huggingface_hub`` inside a ``with`` block, if not to be shown."""
    from huggingface_hub import utils

    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextmanager
def _one_line(job: _Job, file: RemoteFile) -> Iterator[None]:
    """Turn whatever a library raises into one line that says how to do without.

    The kinds of errors differ by library and version, so all are caught.
    """
    try:
        yield
    except Exception as error:  # pylint: disable=broad-exception-caught
        # The disk's errors have a number; those of the network that arrive here have none.
        if getattr(error, "errno", None) is not None:
            raise
        raise DataError(
            f"{job.source.url(file)}: cannot be downloaded: {_reason(error)}; "
            f"by hand: put it at {job.place / file.target}, then fetch again"
        ) from error


def _reason(error: BaseException) -> str:
    """Say why in a few words: what the system said at the bottom, or else the library."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return text


def _write_record(place: Path, entries: Dict[str, Entry]) -> None:
    """Write the record of a place, whole or not at all."""
    sets = {name: entries[name].about for name in sorted(entries)}
    write_json(place / RECORD, {"format": RECORD_FORMAT, "sets": sets})
