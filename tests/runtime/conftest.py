"""Every kernel is tested with every instruction set that this processor has."""

from types import ModuleType

import pytest

from halfbyte.runtime import native


@pytest.fixture
def kernels(isa: str) -> ModuleType:
    """The extension, whose kernels are those of one instruction set after the other."""
    return native.kernels()
