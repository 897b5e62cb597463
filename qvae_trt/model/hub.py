"""A VAE on the Hugging Face hub: from its cache, else the network, or an error within seconds."""

from __future__ import annotations

from pathlib import Path

from qvae_trt.errors import ModelError
from qvae_trt.model.config import CONFIG_NAME, read_config

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
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
        try:
            config = hf_hub_download(repo, CONFIG_NAME, subfolder=folder, local_files_only=True)
            hf_hub_download(repo, WEIGHTS_NAME, subfolder=folder, local_files_only=True)
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
        try:
            url = hf_hub_url(repo, CONFIG_NAME, subfolder=folder)
            get_hf_file_metadata(url, timeout=_ANSWER_SECONDS)
            config = Path(
                hf_hub_download(repo, CONFIG_NAME, subfolder=folder, etag_timeout=_ANSWER_SECONDS)
            )
            if folder is not None or "_class_name" in config.read_text(encoding="utf-8"):
                read_config(config)  # another class is refused before its weights are fetched
            hf_hub_download(repo, WEIGHTS_NAME, subfolder=folder, etag_timeout=_ANSWER_SECONDS)
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


def _unreachable(repo: str, error: Exception, offline_choices: str) -> ModelError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return ModelError(
        f"{repo}: not complete in the hub's cache, and could not be fetched ({reason})",
        fix=offline_choices,
    )
