"""Fetching a checkpoint from the Hugging Face hub: only the files that are read."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from pathlib import Path

from fastwan.errors import BadInput, EnvironmentLacks

_REPO_ID = re.compile(r"^\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?$")

GENERATOR = "generator_inference_transformer"
_ALWAYS = ("model_index.json", "transformer/config.json")
_PATTERNS = {
    "dit": (f"{GENERATOR}/*", "transformer/*"),
    "decoder": ("taew2_1.*", "taehv/taew2_1.*", "vae/taew2_1.*"),
    "text_encoder": ("text_encoder/*", "tokenizer/*"),
}
_TIMEOUT_SECONDS = 10.0
# Pickles are fetched only for the decoder, which upstream publishes as one.
_SUFFIXES = (".json", ".safetensors", ".model", ".txt")


def is_repo_id(source: str) -> bool:
    """Whether `source` reads as ``owner/name`` or ``owner/name@revision``."""
    return bool(_REPO_ID.match(source)) and ".." not in source


def wanted_files(files: Collection[str], components: Collection[str]) -> list[str]:
    """Those of a repository's files that the reader opens for `components`."""
    patterns = [*_ALWAYS, *(p for name in components for p in _PATTERNS[name])]
    if f"{GENERATOR}/diffusion_pytorch_model.safetensors" in files:
        patterns = [pattern for pattern in patterns if pattern != "transformer/*"]
    decoder = _PATTERNS["decoder"]
    return sorted(
        name
        for name in files
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        and (
            name.endswith(_SUFFIXES)
            or any(fnmatch.fnmatchcase(name, pattern) for pattern in decoder)
        )
    )


def download(source: str, components: Collection[str]) -> Path:
    """Folder of a Hugging Face repository in the local cache, fetched if need be.

    Args:
        source: ``owner/name`` or ``owner/name@revision``.
        components: of `fastwan.config.COMPONENTS`.

    Raises:
        BadInput: no such repository or revision, or no access to it.
        EnvironmentLacks: the hub cannot be reached and the cache does not hold the repository,
            or the disk is full.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repo, _, revision = source.partition("@")
    try:
        try:
            # Not list_repo_files, which retries for half a minute where there is no network.
            info = huggingface_hub.HfApi().model_info(
                repo, revision=revision or None, timeout=_TIMEOUT_SECONDS
            )
            patterns = wanted_files([item.rfilename for item in info.siblings or ()], components)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception:
            # Offline: the cache answers, if it has a snapshot at all.
            folder = huggingface_hub.snapshot_download(
                repo, revision=revision or None, local_files_only=True
            )
            return Path(folder)
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision or None, allow_patterns=patterns
            )
        )
    except errors.GatedRepoError:
        raise BadInput(
            "access to this model has to be granted",
            where=source,
            fix="accept its terms on huggingface.co and run `hf auth login`",
        ) from None
    except errors.RepositoryNotFoundError:
        raise BadInput(
            "neither a folder nor a model on huggingface.co",
            where=source,
            fix="check the name; a private model needs `hf auth login`",
        ) from None
    except (errors.RevisionNotFoundError, errors.HFValidationError):
        raise BadInput("not a model's name, or no such revision of it", where=source) from None
    except errors.LocalEntryNotFoundError:
        raise EnvironmentLacks(
            "no such folder, and huggingface.co cannot be reached for a model of that name",
            where=source,
            fix="give a local folder, or connect",
        ) from None
    except Exception as error:  # network libraries and disks fail in many classes
        detail = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise EnvironmentLacks(
            f"download failed: {detail}", where=source, fix="try again or give a local folder"
        ) from None
