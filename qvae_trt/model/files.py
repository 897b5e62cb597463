"""Which files hold a VAE's weights.

In a folder, those that its shard index names, else one file. On the Hugging Face hub, from its
cache, else the network, or an error within seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from qvae_trt.errors import ModelError
from qvae_trt.files.values import read_object
from qvae_trt.model.config import CONFIG_NAME, read_config

#: What helps where the hub does not.
OFFLINE_CHOICES = (
    "Without the hub: --model bundled:tiny (small, trained), --model random:full (full size, to "
    "measure speed), or a local folder or .safetensors file of the VAE."
)
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
#: Suffixes of files that run code when they are read.
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_SHARD = re.compile(r"(.+)-\d+-of-(\d+)(\..+)?\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """The weights in a VAE's folder, as diffusers finds them.

    The index decides, and without one the file of the usual name. A folder that has neither may
    hold one index, one file or one whole set of shards, of any name.

    Raises:
        ModelError: nothing there, part of it, or files of which any could be meant.
    """
    index, single = folder / INDEX_NAME, folder / WEIGHTS_NAME
    if single.is_file():
        if not index.is_file():
            return [single]
        if single.name not in shard_names(index):  # one of them is of an earlier save
            _refuse_several((index, single))
    indexes = [index] if index.is_file() else sorted(folder.glob("*.safetensors.index*.json"))
    if len(indexes) > 1:
        _refuse_several(indexes)
    if indexes:
        return _shards(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    count = _shard_count(files)
    if len(files) == (count or 1):
        return files
    if count is not None:
        raise ModelError(
            f"{folder}: found {_names(files)}, expected {count} shards: half a download?",
            fix=f"Fetch them again. {OFFLINE_CHOICES}",
        )
    if files:
        _refuse_several(files)
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ModelError(
            f"{folder}: found {_names(pickles)}, expected {WEIGHTS_NAME}: pickles run code",
            fix="Convert them with diffusers: save_pretrained(..., safe_serialization=True).",
        )
    raise ModelError(
        f"{folder}: has {CONFIG_NAME} and no {WEIGHTS_NAME}: half a download?",
        fix=f"Fetch it again. {OFFLINE_CHOICES}",
    )


def shard_names(index: Path) -> list[str]:
    """The names of the files that a shard index wants beside it.

    Raises:
        ModelError: it cannot be read, is malformed, or names anything but `.safetensors` files.
    """
    fault = partial(ModelError, fix="Fetch the file again.")
    weight_map = read_object(index, fault=fault)["weight_map"]
    names = sorted({file.text() for file in weight_map.fields().values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            weight_map.refuse(f"names {name!r}, expected .safetensors files beside it")
    if not names:
        weight_map.refuse("names no file")
    return names


def _shards(index: Path) -> list[Path]:
    files = [index.with_name(name) for name in shard_names(index)]
    absent = [path for path in files if not path.exists()]
    if absent:
        raise ModelError(
            f"{index}: names files that are not there: {_names(absent)}: half a download?",
            fix="Fetch them again.",
        )
    return files


def _shard_count(files: Sequence[Path]) -> int | None:
    """Of how many shards their names speak, where all are shards of one set."""
    matches = [match for path in files if (match := _SHARD.fullmatch(path.name))]
    sets = {match.group(1, 2, 3) for match in matches}
    return int(matches[0][2]) if len(matches) == len(files) and len(sets) == 1 else None


def _refuse_several(files: Sequence[Path]) -> NoReturn:
    raise ModelError(
        f"{files[0].parent}: found {_names(files)}, expected {WEIGHTS_NAME} or {INDEX_NAME}: "
        "which of them is meant is not clear",
        fix="Move the others away, or name one .safetensors file.",
    )


def _names(files: Iterable[Path]) -> str:
    return ", ".join(path.name for path in files)


#: Where a repository keeps its VAE: a pipeline's, or the VAE's own.
_FOLDERS = ("vae", None)
_ANSWER_SECONDS = 4.0


def fetch(repo: str) -> Path:
    """The local folder that holds the VAE of this hub repository.

    What the cache holds whole is used without asking the network. Otherwise the hub has a few
    seconds to answer before anything is downloaded: its client's own retries would take half a
    minute to say that it is not there.
    """
    from huggingface_hub import errors

    try:
        found = _from_hub(repo, cached=True)
    except errors.HFValidationError as error:
        raise ModelError(f"{repo}: is not a hub id: {error}") from error
    try:
        found = found or _from_hub(repo, cached=False)
    except ModelError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repo}: the hub asks for permission first",
            fix=f"Accept its terms and log in with `hf auth login`. {OFFLINE_CHOICES}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{repo}: no such folder here, and the hub has no such public repository",
            fix=OFFLINE_CHOICES,
        ) from error
    # The client lets through its HTTP library's own classes, and that library has changed.
    except Exception as error:
        raise _unreachable(repo, error) from error
    if found is None:
        raise ModelError(
            f"{repo}: found no VAE, expected vae/{CONFIG_NAME} and vae/{WEIGHTS_NAME}",
            fix=OFFLINE_CHOICES,
        )
    return found


def _from_hub(repo: str, *, cached: bool) -> Path | None:
    """The folder, whole, from the cache alone or with what has to be downloaded; None where there
    is no VAE.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    # With the network, this one says that the hub did not answer.
    unanswered = () if cached else errors.LocalEntryNotFoundError
    for folder in _FOLDERS:
        options = {"subfolder": folder, "etag_timeout": _ANSWER_SECONDS}
        have = partial(hf_hub_download, repo, local_files_only=cached, **options)
        try:
            if not cached:
                url = hf_hub_url(repo, CONFIG_NAME, subfolder=folder)
                get_hf_file_metadata(url, timeout=_ANSWER_SECONDS)
            config = Path(have(CONFIG_NAME))
            if folder is not None or b"_class_name" in config.read_bytes():
                read_config(config)  # another class is refused before its weights are fetched
            try:
                names = shard_names(Path(have(INDEX_NAME)))
            except unanswered:
                raise
            except errors.EntryNotFoundError:
                names = [WEIGHTS_NAME]
            for name in names:
                have(name)
        except unanswered:
            raise
        except errors.EntryNotFoundError:
            continue
        return config.parent
    return None


def _unreachable(repo: str, error: Exception) -> ModelError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return ModelError(
        f"{repo}: not complete in the hub's cache, and could not be fetched ({reason})",
        fix=OFFLINE_CHOICES,
    )
