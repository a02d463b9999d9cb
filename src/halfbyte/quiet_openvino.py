"""OpenVINO without what it sends about its use."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def openvino() -> Any:
    """The package, imported; raises `ImportError` where it is not installed.

    By itself it would tell its makers of every import and conversion over the network, keep a file for that in the
    user's home folder, and start processes that outlive the command. What was imported before stays as it is.
    """
    # None in the place of a module makes its import fail; OpenVINO then takes a stub of its own.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")
