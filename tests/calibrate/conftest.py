"""Sessions of the embedded models, ready for a step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from halfbyte import api
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.progress import Progress
from halfbyte.session import Session


@pytest.fixture
def session_of_adalog() -> Callable[[str, int], Session]:
    """The session of an embedded model, in which no step has run."""

    def make(model: str, bits: int) -> Session:
        options = Options(model=model, recipe="adalog", w_bits=bits, a_bits=bits, calib_images=32, workers=0, limit=1)
        quiet = Progress(quiet=True)
        return api._session(read_inputs(options, resolved_recipe(options), quiet), options, quiet)

    return make
