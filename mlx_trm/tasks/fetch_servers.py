"""The servers that sets come from, and the mirrors that environment variables can name instead."""

import os
from urllib.parse import urlsplit

from mlx_trm.datasets.sources import HUGGING_FACE, RemoteFile, Source
from mlx_trm.errors import ConfigError

SERVERS = {
    "HF_ENDPOINT": "https://huggingface.co",
    "MLX_TRM_GITHUB": "https://github.com",
    "MLX_TRM_GITHUB_RAW": "https://raw.githubusercontent.com",
}


def server(variable: str) -> str:
    """Return the address of a server: what the environment variable says, or the usual one.

    Raises:
        ConfigError: if the variable holds no http or https URL.
    """
    address = (os.environ.get(variable) or SERVERS[variable]).rstrip("/")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        good = good and not (parts.query or parts.fragment) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{variable}: {address!r} is not the address of a server, such as {SERVERS[variable]}"
        )
    return address


def file_url(source: Source, file: RemoteFile, revision: str) -> str:
    """Return where a file of a set is downloaded from, at a branch or a commit."""
    if source.kind == HUGGING_FACE:
        base = f"{server('HF_ENDPOINT')}/datasets/{source.repository}/resolve"
    else:
        base = f"{server('MLX_TRM_GITHUB_RAW')}/{source.repository}"
    return f"{base}/{revision}/{file.path}"


def archive_url(source: Source) -> str:
    """Return where the archive of a set is downloaded from."""
    return f"{server('MLX_TRM_GITHUB')}/{source.repository}/archive/{source.revision}.tar.gz"
