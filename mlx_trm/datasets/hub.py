"""Checkpoint files of Hugging Face: ``hf:OWNER/NAME[@REVISION][:FILE]``.

The transfer, the cache and the token are ``huggingface_hub``'s, which comes with the extra ``hub``
and is imported where it is used. Here a file is only chosen, and errors become one line.
"""

import os
import re
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from mlx_trm.datasets.watching import hash_blob, watch
from mlx_trm.errors import CheckpointError, ConfigError, describe_error, did_you_mean, listed, shown
from mlx_trm.system.files import hash_file

PREFIX = "hf:"
# Read beside a checkpoint, where a repository has them: settings that weights do not show.
SIDE_FILES = ("all_config.yaml", "config.yaml", "config.json")
_SOURCE = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^:]+))?(:(?P<file>.+))?")
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# What the reference and HRM call their files, which have no ending.
_BARE = re.compile(r"(.*_)?step_\d+[^.]*|checkpoint|model|weights")
# Of a trainer, and never weights.
_OTHERS = re.compile(r"(optimizer|scheduler|rng_state|training_args|scaler|trainer_state).*")


class HubFile(NamedTuple):
    """A file that was downloaded, or was in the cache.

    Attributes:
        path: on this machine; its side files are beside it.
        repository: such as ``arcprize/trm_arc_prize_verification``.
        file: its name in the repository.
        revision: the commit, or what was asked for where the cache alone was asked.
    """

    path: str
    repository: str
    file: str
    revision: str


def download_checkpoint(source: str, timeout: float = 30.0, progress: bool = False) -> HubFile:
    """Bring a repository's checkpoint, and the settings beside it, into the library's cache.

    Args:
        source: ``hf:OWNER/NAME[@REVISION][:FILE]``; without a revision ``main``, without a file the
            one checkpoint there is.
        timeout: seconds that a server may send nothing.
        progress: show bars on standard error.

    Returns:
        Where it is.

    Raises:
        ConfigError: if the library is not installed, or ``source`` is malformed.
        CheckpointError: in one line: what did not come, or which files there are to choose from.
    """
    # Here: `import mlx_trm` reads this module, and fetches nothing.
    from mlx_trm.datasets.fetch import hub_bars

    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ConfigError(
            f"{shown(source)}: is not hf:OWNER/NAME[@REVISION][:FILE], such as "
            "hf:arcprize/trm_arc_prize_verification:arc_v1_public/step_518071"
        )
    library = _library()
    repository, wanted = match["repository"], match["file"]
    revision = match["revision"] or "main"
    # Read here, for the library reads it only once, when it is first imported.
    api = library.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        about = api.model_info(repository, revision=revision, files_metadata=True, timeout=timeout)
    except Exception as error:  # pylint: disable=broad-exception-caught  # they differ by version
        path = wanted and _in_cache(api, repository, wanted, revision)
        if path:
            return HubFile(path, repository, wanted, revision)
        raise _failure(source, error) from error
    files = [each.rfilename for each in about.siblings or []]
    chosen = _choose(source, files, wanted)
    folder = chosen.rpartition("/")[0]
    beside = [f"{folder}/{name}" if folder else name for name in SIDE_FILES]
    promised = {each.rfilename: each for each in about.siblings or []}
    path = ""
    with hub_bars(progress):
        for file in [*(name for name in beside if name in files), chosen]:
            path = _download(source, api, (repository, file, about.sha or revision), timeout)
            _check_digest(source, path, promised[file])
    return HubFile(path, repository, chosen, about.sha or revision)


def _download(source: str, api: Any, which: Tuple[str, str, str], timeout: float) -> str:
    """Download one file of a repository at a revision, watched; give its path."""
    repository, file, revision = which
    found: List[str] = []

    def bring() -> None:
        path = api.hf_hub_download(repository, file, revision=revision, etag_timeout=timeout)
        found.append(str(path))

    try:
        watch(bring, _cache_of(repository))
    except Exception as error:  # pylint: disable=broad-exception-caught
        raise _failure(source, error) from error
    return found[0]


def _cache_of(repository: str) -> Path:
    """Give the folder of the library's cache that a repository's files come into."""
    constants = getattr(_library(), "constants", None)
    cache = getattr(constants, "HF_HUB_CACHE", os.curdir)
    return Path(cache) / f"models--{repository.replace('/', '--')}"


def _check_digest(source: str, path: str, promised: Any) -> None:
    """Compare a file with what the repository lists, SHA-256 or git's name; the library does not.

    Parts of two versions, which a download that was gone on with could be made of, have neither.
    """
    sha256 = getattr(getattr(promised, "lfs", None), "sha256", None)
    blob = None if sha256 else getattr(promised, "blob_id", None)
    digest = "SHA-256" if sha256 else "name in git"
    if (sha256 and hash_file(path) != sha256) or (blob and hash_blob(Path(path)) != blob):
        raise CheckpointError(
            f"{shown(source, 200)}: what came is not what the repository lists (its {digest} "
            f"differs); remove {os.path.realpath(path)} and try again"
        )


def _library() -> Any:
    """Import ``huggingface_hub``."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            'hf: needs huggingface_hub; pip install "mlx-trm[hub]", or in a checkout '
            'pip install -e ".[hub]"'
        ) from error
    return huggingface_hub


def _in_cache(api: Any, repository: str, file: str, revision: str) -> Optional[str]:
    """Give a file's path where an earlier download has left it."""
    try:
        return str(api.hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except Exception:  # pylint: disable=broad-exception-caught  # why not was said before
        return None


def is_checkpoint(file: str) -> bool:
    """Tell by a file's name whether it may hold weights."""
    name = file.rpartition("/")[2]
    if _OTHERS.fullmatch(name):
        return False
    return name.endswith(_ENDINGS) or _BARE.fullmatch(name) is not None


def _choose(source: str, files: Sequence[str], wanted: Optional[str]) -> str:
    """Choose the checkpoint among a repository's files."""
    found: List[str] = sorted(file for file in files if is_checkpoint(file))
    if wanted is not None:
        if wanted in files:
            return wanted
        hint = did_you_mean(wanted, found) or f"; it has: {_listed(found or files)}"
        raise CheckpointError(f"{shown(source)}: the repository has no such file{hint}")
    base = shown(source, 200)
    if not found:
        raise CheckpointError(
            f"{base}: no file there is called as a checkpoint is; it has: {_listed(files)}; name "
            "one with :FILE"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{base}: has {len(found)} checkpoint files; name one: {base}:FILE with FILE one of "
            f"{_listed(found)}"
        )
    return found[0]


def _listed(files: Sequence[str]) -> str:
    return listed([shown(file) for file in files], 12, ", ") or "nothing"


def _failure(source: str, error: BaseException) -> CheckpointError:
    """Say in one line why nothing came; kinds of errors are told apart by name, in all versions."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "GatedRepoError" in kinds:
        why = "its owner gives access on request only; ask there, then log in with hf auth login"
    elif "RevisionNotFoundError" in kinds:
        why = "the repository has no such revision; name a branch, a tag or a commit after @"
    elif "RepositoryNotFoundError" in kinds or status in (401, 404):
        why = "there is no such repository, or it is private; look at the name, or log in"
    elif "OfflineModeIsEnabled" in kinds:
        why = "HF_HUB_OFFLINE is set and the file is not in the cache; unset it, or download first"
    elif isinstance(error, OSError) and getattr(error, "errno", None) == 28:
        why = "no space is left on the device; HF_HOME can name another place"
    else:
        why = f"{describe_error(error)}; by hand: download the file and name it instead"
    return CheckpointError(f"{shown(source, 200)}: cannot be downloaded: {why}")
