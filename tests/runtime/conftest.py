"""Every kernel is tested with every instruction set that this processor has."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from halfbyte.runtime import native


@pytest.fixture(params=["portable", "avx2", "avx512vnni"])
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    if not native.available():
        pytest.skip("the native kernels were not built")
    module = native.kernels()
    if request.param not in module.isas():
        pytest.skip(f"this processor has no {request.param}")
    before = module.isa()
    module.choose_isa(request.param)
    yield module
    module.choose_isa(before)
