"""Weights of a small model."""

from __future__ import annotations

import pytest
import torch

from halfbyte.models.load import create_architecture


@pytest.fixture(scope="module")
def state():
    """The state dict of a `cifar_resnet20`."""
    torch.manual_seed(1)
    return create_architecture("cifar_resnet20").state_dict()
