"""timm's published weights as a file: from the hub's cache, else downloaded, else a prompt error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halfbyte.errors import HalfbyteError
from halfbyte.hub_client import check_reachable
from halfbyte.models.names import ModelName, import_timm

FILE_NAMES = ("model.safetensors", "pytorch_model.bin")


def fetch_weights(name: ModelName) -> Path:
    """The weights file of a timm model, in the hub's cache on this machine.

    Raises `HalfbyteError`, always with the remedy `--weights FILE`, where there are no weights, none with a
    classifier, none on the hub, or no way to it.
    """
    config: Any = import_timm().get_pretrained_cfg(name.full)
    if config is None or not config.has_weights:
        raise HalfbyteError(f"no pretrained weights are published for {name.full}; give --weights FILE")
    if config.num_classes == 0:
        raise HalfbyteError(
            f"the published weights of {name.full} have no classifier; give --weights FILE that holds one"
        )
    if not config.hf_hub_id:
        raise HalfbyteError(
            f"the weights of {name.full} are not on the hub; get them from {config.url} and give --weights FILE"
        )
    try:
        return _cached(config.hf_hub_id) or _downloaded(config.hf_hub_id)
    except Exception as error:  # the network, the hub, its client and the disk each fail in ways of their own
        raise HalfbyteError(
            f"cannot fetch the pretrained weights of {name.full} ({str(error).strip() or type(error).__name__}); "
            "give --weights FILE (.safetensors or .pth)"
        ) from error


def _repository(hub_id: str) -> tuple[str, str | None]:
    repository, _, revision = hub_id.partition("@")
    return repository, revision or None


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    repository, revision = _repository(hub_id)
    for file_name in FILE_NAMES:
        found = try_to_load_from_cache(repository, file_name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _downloaded(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download, list_repo_files

    check_reachable()
    repository, revision = _repository(hub_id)
    published = list_repo_files(repository, revision=revision)
    file_name = next((name for name in FILE_NAMES if name in published), None)
    if file_name is None:
        raise HalfbyteError(f"{hub_id} holds neither {' nor '.join(FILE_NAMES)}")
    return Path(hf_hub_download(repository, file_name, revision=revision))
