"""Weights of a small model, and a machine whose network and hub are not there."""

from __future__ import annotations

import socket

import pytest
import torch

from halfbyte.models.load import create_architecture


@pytest.fixture(scope="module")
def state():
    """The state dict of a `cifar_resnet20`."""
    torch.manual_seed(1)
    return create_architecture("cifar_resnet20").state_dict()


@pytest.fixture
def no_network(monkeypatch):
    """A network without names or routes, counting the attempts."""
    attempts = []

    def refuse(*address, **_):
        attempts.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.fixture
def empty_hub(monkeypatch, tmp_path):
    """A cache of the hub with nothing in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"
