"""A VAE on the Hugging Face hub: from its cache, else the network, or an error within seconds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt.errors import ModelError
from qvae_trt.model.config import CONFIG_NAME, read_config
from qvae_trt.model.files import INDEX_NAME, WEIGHTS_NAME, shard_names

if TYPE_CHECKING:
    from collections.abc import Callable

#: Where a repository keeps its VAE: a pipeline's, or the VAE's own.
_FOLDERS = ("vae", None)
_ANSWER_SECONDS = 4.0


def fetch(repo: str, *, offline_choices: str) -> Path:
    """The local folder that holds the VAE of this hub repository.

    What the cache holds whole is used without asking the network. Otherwise the hub has a few
    seconds to answer before anything is downloaded: its client's own retries would take half a
    minute to say that it is not there.
    """
    return _cached(repo) or _download(repo, offline_choices=offline_choices)


def _cached(repo: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for folder in _FOLDERS:
        held = partial(hf_hub_download, repo, subfolder=folder, local_files_only=True)
        try:
            config = held(CONFIG_NAME)
            _have_weights(held, cached=True)
        except LocalEntryNotFoundError:
            continue
        except HFValidationError as error:
            raise ModelError(f"{repo}: is not a hub id: {error}") from error
        return Path(config).parent
    return None


def _download(repo: str, *, offline_choices: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    for folder in _FOLDERS:
        fetched = partial(hf_hub_download, repo, subfolder=folder, etag_timeout=_ANSWER_SECONDS)
        try:
            url = hf_hub_url(repo, CONFIG_NAME, subfolder=folder)
            get_hf_file_metadata(url, timeout=_ANSWER_SECONDS)
            config = Path(fetched(CONFIG_NAME))
            if folder is not None or b"_class_name" in config.read_bytes():
                read_config(config)  # another class is refused before its weights are fetched
            _have_weights(fetched, cached=False)
        except ModelError:
            raise
        except GatedRepoError as error:
            raise ModelError(
                f"{repo}: the hub asks for permission first",
                fix=f"Accept its terms and log in with `hf auth login`. {offline_choices}",
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"{repo}: no such folder here, and the hub has no such public repository",
                fix=offline_choices,
            ) from error
        except LocalEntryNotFoundError as error:
            raise _unreachable(repo, error, offline_choices) from error
        except EntryNotFoundError:
            continue
        # The client lets through its HTTP library's own classes, and that library has changed.
        except Exception as error:
            raise _unreachable(repo, error, offline_choices) from error
        return config.parent
    raise ModelError(
        f"{repo}: found no VAE, expected vae/{CONFIG_NAME} and vae/{WEIGHTS_NAME}",
        fix=offline_choices,
    )


def _have_weights(have: Callable[[str], str], *, cached: bool) -> None:
    """Have the files that the repository's shard index names; without an index the one file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        names = shard_names(Path(have(INDEX_NAME)))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and not cached:
            raise  # the hub did not answer
        names = [WEIGHTS_NAME]
    for name in names:
        have(name)


def _unreachable(repo: str, error: Exception, offline_choices: str) -> ModelError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return ModelError(
        f"{repo}: not complete in the hub's cache, and could not be fetched ({reason})",
        fix=offline_choices,
    )
