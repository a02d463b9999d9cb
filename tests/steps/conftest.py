"""A run that is stopped and goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from halfbyte.session import Session

Run = Callable[[str, bool], object]


@pytest.fixture
def survives_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let a run end undisturbed, then stop it behind two of its saves and go on: the artifacts are the same bytes.

    The run takes the name of a folder in `tmp_path`, and whether it resumes.
    """

    def check(run: Run, *, at: tuple[int, int]) -> None:
        run("whole", False)
        save, saves = Session._save, [0]

        def save_and_stop(session: Session) -> None:
            save(session)
            saves[0] += 1
            if saves[0] in at:
                raise KeyboardInterrupt

        monkeypatch.setattr(Session, "_save", save_and_stop)
        for resume in (False, True):
            with pytest.raises(KeyboardInterrupt):
                run("parts", resume)
        run("parts", True)
        for name in ("model.safetensors", "quantization.json"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    return check
