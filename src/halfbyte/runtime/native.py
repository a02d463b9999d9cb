"""The native kernels, or one line that says what is missing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from halfbyte.errors import HalfbyteError

if TYPE_CHECKING:
    from types import ModuleType

_EXTENSION = "halfbyte.runtime._native"


def kernels() -> ModuleType:
    """The extension module; raises `HalfbyteError` where it was not built, or cannot run here."""
    try:
        return importlib.import_module(_EXTENSION)
    except ModuleNotFoundError as error:
        raise HalfbyteError(
            "the native kernels were not built with this installation; install a C++17 compiler (such as g++) and then "
            "halfbyte again, or choose another engine"
        ) from error
    except ImportError as error:
        raise HalfbyteError(
            f"the native kernels cannot be loaded: {error}; mend that or choose another engine"
        ) from error


def available() -> bool:
    """Whether `kernels` would succeed."""
    try:
        kernels()
    except HalfbyteError:
        return False
    return True


def isa() -> str:
    """The instruction set in use: portable, avx2, avx512vnni or neon; HALFBYTE_ISA in the environment chooses it."""
    return cast(str, kernels().isa())
