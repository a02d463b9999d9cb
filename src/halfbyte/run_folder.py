"""The folder of one run: who may write into it, and what is found there."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

from halfbyte.artifact import FILES, write_files
from halfbyte.errors import HalfbyteError
from halfbyte.session import STATE_FACTS, STATE_TENSORS, remove_state

RECIPE, METRICS, REPORT, LOG = "recipe.yaml", "metrics.json", "report.html", "log.jsonl"
OWN_FILES = (RECIPE, METRICS, REPORT, LOG, STATE_FACTS, STATE_TENSORS, *FILES)


class Found(Enum):
    """What a run finds where it is to write."""

    NOTHING = "nothing"
    UNFINISHED = "an unfinished run"
    FINISHED = "a finished run"
    OTHER = "something else"


class RunFolder:
    """`settings` are the plain values that decide a run's result; a run continues only under the same ones."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings

    def found(self) -> Found:
        """What is there now; raises `HalfbyteError` where the path is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise HalfbyteError(f"--out {self.path} is a file; give a folder")
        if not self.path.exists() or not any(self.path.iterdir()):
            return Found.NOTHING
        if self._first_entry() is None:
            return Found.OTHER
        return Found.FINISHED if (self.path / METRICS).is_file() else Found.UNFINISHED

    def admit(self, resume: bool, force: bool) -> Found:
        """Decide before any work whether the run may use the folder; nothing is written yet.

        Returns NOTHING for a fresh start (with `force` also over whatever is there), UNFINISHED to continue, FINISHED
        to show the result. Raises `HalfbyteError` with the remedy otherwise.
        """
        found = self.found()
        if found is Found.NOTHING or force:
            return Found.NOTHING
        if not resume:
            remedy = "continue it with --resume or replace it" if found is Found.UNFINISHED else "replace it"
            remedy = "it is not a run; write there anyway" if found is Found.OTHER else remedy
            raise HalfbyteError(
                f"--out {self.path} holds {found.value}; {remedy} with --force, or choose another --out"
            )
        if found is Found.OTHER:
            raise HalfbyteError(f"--out {self.path} holds no run to resume; choose another --out, or --force")
        entry = self._first_entry() or {}
        changed = sorted(key for key, value in self.settings.items() if entry.get("settings", {}).get(key) != value)
        if changed:
            differ = ", ".join(changed)
            raise HalfbyteError(f"--out {self.path} holds a run with other settings ({differ}); resume with the same")
        return found

    def start(self, recipe_yaml: str) -> None:
        """Make the folder, without the files of an earlier run, and write down what the run is."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in OWN_FILES:
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise HalfbyteError(f"cannot use --out {self.path}: {error.strerror}") from None
        write_files(self.path, {RECIPE: recipe_yaml.encode()})
        self.log("start", settings=self.settings)

    def finish(self, metrics: dict[str, Any], report: str) -> None:
        """Write the results and drop the state that only a continuation needs."""
        text = json.dumps(metrics, indent=2)
        write_files(self.path, {REPORT: report.encode(), METRICS: text.encode()})
        remove_state(self.path)
        self.log("finished")

    def metrics(self) -> dict[str, Any]:
        """The results of a finished run."""
        try:
            found: dict[str, Any] = json.loads((self.path / METRICS).read_text())
        except (OSError, ValueError) as error:
            raise HalfbyteError(f"{self.path / METRICS} is damaged ({error}); run again with --force") from None
        return found

    def log(self, event: str, **facts: Any) -> None:
        """Append one line of JSON to the log."""
        try:
            with (self.path / LOG).open("a") as file:
                file.write(json.dumps({"event": event, **facts}) + "\n")
        except OSError as error:
            raise HalfbyteError(f"cannot write to {self.path}: {error.strerror}") from None

    def _first_entry(self) -> dict[str, Any] | None:
        try:
            with (self.path / LOG).open() as file:
                entry = json.loads(file.readline())
        except (OSError, ValueError):
            return None
        return entry if isinstance(entry, dict) and entry.get("event") == "start" else None
