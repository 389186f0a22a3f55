"""A model's files as a local folder: given as a folder, or fetched from the hub."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def local_folder(name: str | Path, needs: str = "config.json") -> Path:
    """The folder of a model that is named by its path or by its hub id.

    Files of the hub come through huggingface_hub's cache, `config.json` first.
    Raises FileNotFoundError for a folder that does not exist or lacks the file `needs`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / needs).is_file():
            raise FileNotFoundError(f"{folder} holds no {needs}; it is no model's folder")
        return folder.resolve()
    if folder.exists():
        raise FileNotFoundError(f"{folder} is a file; give the model's folder")
    if not _HUB_ID.match(str(name)):
        raise FileNotFoundError(f"{name} does not exist, and it is no hub id (owner/name) either")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(str(name), allow_patterns=[needs])
        if not (Path(found) / needs).is_file():
            raise FileNotFoundError(f"the hub's {name} holds no {needs}")
        safe = _has_safetensors(str(name))
        ignore = ["*.msgpack", "*.h5", "*.gguf", *(["*.bin"] if safe else [])]
        found = snapshot_download(str(name), ignore_patterns=ignore)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, FileNotFoundError) and "holds no" in str(error):
            raise
        raise FileNotFoundError(
            f"{name} is no folder here, and could not be fetched from the hub "
            f"({type(error).__name__}: {error})"
        ) from error
    return Path(found)


def _has_safetensors(name: str) -> bool:
    """Whether the hub holds whole weights as safetensors, so that the .bin files can stay there."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(name)
    except Exception:  # offline: the cache holds what it holds
        return False
    return any(re.fullmatch(r"model.*\.safetensors", file) for file in files)
