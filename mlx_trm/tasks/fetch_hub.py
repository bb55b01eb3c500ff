"""Downloading a file of Hugging Face with ``huggingface_hub``, where that is installed.

It is optional, so it is looked for when it is wanted. Its cache is not used: the file comes into a
folder of ours and is moved to its place from there.
"""

import importlib
import importlib.util
import logging
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Optional

from mlx_trm.tasks.fetch_http import Announced, DownloadError

LOG = logging.getLogger(__name__)

OLDEST = (0, 23)


def find_hub() -> Optional[Any]:
    """Return the module ``huggingface_hub``, or None where it is missing, broken or too old."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    try:
        hub = importlib.import_module("huggingface_hub")
        version = tuple(int(number) for number in hub.__version__.split(".")[:2])
    except (ImportError, AttributeError, ValueError) as error:
        LOG.info("huggingface_hub cannot be used: %s", " ".join(str(error).split()))
        return None
    if version < OLDEST:
        LOG.info("huggingface_hub %s is older than 0.23 and is not used", hub.__version__)
        return None
    return hub


class HubFile(NamedTuple):
    """A file of a dataset.

    Attributes:
        endpoint: the server.
        repository: of the dataset.
        revision: a branch or a commit.
        path: of the file in it.
    """

    endpoint: str
    repository: str
    revision: str
    path: str


def download_with_hub(
    hub: Any,
    file: HubFile,
    folder: Path,
    part: Path,
    timeout: float,
    quiet: bool,
    inspect: Callable[[Announced], None],
) -> Optional[str]:
    """Download a file of a dataset; what broke off is gone on with by ``huggingface_hub`` itself.

    Args:
        hub: what :func:`find_hub` returned.
        file: what to download.
        folder: for the library's temporary files; left there when the download fails.
        part: where the file goes.
        timeout: seconds for the server's first answer.
        quiet: show no progress bar.
        inspect: called before the file is downloaded; what it raises ends the download.

    Returns:
        The commit that the server named, if it did.

    Raises:
        DownloadError: if the file does not come.
    """
    where = {"repo_type": "dataset", "endpoint": file.endpoint}
    url = hub.hf_hub_url(file.repository, file.path, revision=file.revision, **where)
    with _failures(url):
        about = hub.get_hf_file_metadata(url, token=False, timeout=timeout)
        commit: Optional[str] = about.commit_hash
        digest = about.etag if re.fullmatch(r"[0-9a-f]{64}", about.etag or "") else None
    inspect(Announced(commit, digest))
    with _failures(url), _progress_bars(hub, not quiet):
        come = hub.hf_hub_download(
            file.repository,
            file.path,
            revision=commit or file.revision,
            local_dir=folder,
            token=False,
            etag_timeout=timeout,
            **where,
        )
        Path(come).replace(part)
    shutil.rmtree(folder, ignore_errors=True)
    return commit


@contextmanager
def _failures(url: str) -> Iterator[None]:
    """Turn whatever the library raises into one line; its kinds of errors differ by version."""
    try:
        yield
    except Exception as error:  # pylint: disable=broad-exception-caught
        text = " ".join(str(error).split())[:200]
        raise DownloadError(
            f"{url}: huggingface_hub says {type(error).__name__}: {text} "
            "(--no-hub downloads without it)"
        ) from error


@contextmanager
def _progress_bars(hub: Any, shown: bool) -> Iterator[None]:
    """Hide the library's progress bars inside a ``with`` block, unless they are to be shown."""
    utils = hub.utils
    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
