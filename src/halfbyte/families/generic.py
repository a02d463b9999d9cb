"""What can be said of a model that no family knows: the layers' roles by name and shape, blocks by numbering."""

from __future__ import annotations

from torch import nn

_LINEAR_ROLES = {
    "qkv": "qkv", "q": "qkv", "k": "qkv", "v": "qkv", "kv": "qkv", "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv",
    "proj": "proj", "out_proj": "proj", "fc1": "fc1", "fc2": "fc2", "gate": "gate", "reduction": "reduction",
}  # fmt: skip


def role_of(path: str, module: nn.Module) -> str:
    """The role of a linear or a convolution, from the last part of its path, else from its shape."""
    if isinstance(module, nn.Conv2d):
        return "depthwise" if module.groups == module.in_channels > 1 else "conv"
    assert isinstance(module, nn.Linear)
    widens = module.out_features > module.in_features
    return _LINEAR_ROLES.get(path.rpartition(".")[2], "fc1" if widens else "fc2")


def block_of(path: str, blocks: set[str]) -> str:
    """The innermost known block that holds `path`; without one, the path up to its last number, else its first part."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:end]) in blocks:
            return ".".join(parts[:end])
    numbered = [end for end, part in enumerate(parts[:-1], start=1) if part.isdigit()]
    return ".".join(parts[: numbered[-1]]) if numbered else parts[0]
