"""The folder of one run: who may write into it, and what is found there."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from halfbyte.artifact_files import MAX_JSON_BYTES, write_files
from halfbyte.errors import HalfbyteError
from halfbyte.files import read_file, reason, remedy
from halfbyte.locks import Lock, lock, locked_folder
from halfbyte.run_files import BENCH, FINDINGS, LOG, METRICS, RECIPE, REPORT, RunFiles, page_bytes, read_metrics
from halfbyte.session import has_state, remove_state

# What Windows lets no file be called, whatever follows behind a dot.
_RESERVED = re.compile(r"\A(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?=\.|\Z)", re.IGNORECASE)
# Of a file's name, in bytes, each of its two free parts may have so many.
_LONGEST = 100


def default_folder(model: str, recipe: str, widths: str) -> Path:
    """Where a run is written that was given no `--out`: names are free text, the folder's any file system can hold."""
    parts = (text.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore") for text in (model, recipe))
    # Nothing that leads out of runs/, or looks like an option.
    name = re.sub(r"[^\w.-]+", "_", "-".join((*parts, widths))).lstrip("-")
    return Path("runs") / _RESERVED.sub(r"\1_", name)


class Found(Enum):
    """What a run finds where it is to write."""

    NOTHING = "nothing"
    UNFINISHED = "an unfinished run"
    FINISHED = "a finished run"
    OTHER = "something else"


class OtherSettingsError(HalfbyteError):
    """The run that is there has other settings: `differing` names them."""

    def __init__(self, path: Path, differing: str) -> None:
        super().__init__(f"--out {path} holds a run with other settings ({differing}); resume with the same")
        self.differing = differing


class RunFolder:
    """`settings` are the plain values that decide a run's result; a run continues only under the same ones.

    Of several processes one `writes`; in the others whatever would write does nothing.
    """

    def __init__(self, path: Path, settings: dict[str, Any], writes: bool = True) -> None:
        self.path = path
        self.settings = settings
        self.writes = writes
        self._lock: Lock | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        """Let other processes write there."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def found(self) -> Found:
        """What is there now; raises `HalfbyteError` where the path is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise HalfbyteError(f"--out {self.path} is a file; give a folder")
        # A run that was killed in its first moment leaves half a log beside its place.
        if not self.path.exists() or all(entry.name == f"{LOG}.part" for entry in self.path.iterdir()):
            return Found.NOTHING
        entries = self._entries()
        if not entries:
            return Found.OTHER
        return Found.FINISHED if any(entry["event"] == "finished" for entry in entries) else Found.UNFINISHED

    def admit(self, resume: bool, force: bool) -> Found:
        """Decide before any work whether the run may use the folder; nothing is written yet.

        Returns NOTHING for a fresh start (with `force` also over whatever is there), UNFINISHED to continue, FINISHED
        to show the result. Raises `HalfbyteError` with the remedy otherwise, also where another process writes there;
        from now on none may, until the end of a with-block over this folder.
        """
        found = self.found()
        if force or not (resume and found is Found.FINISHED):
            self.hold()
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
        changed = _differences(self._entries()[0].get("settings"), self.settings)
        if changed:
            raise OtherSettingsError(self.path, ", ".join(changed))
        if found is Found.FINISHED:
            self._drop_left_state()
        return found

    def _drop_left_state(self) -> None:
        """What a run did not come to remove that was killed behind the last line of its log."""
        with suppress(OSError):
            if self.writes and has_state(self.path) and (held := lock(self.path)) is not None:
                try:
                    if self.found() is Found.FINISHED:
                        remove_state(self.path)
                finally:
                    held.release()

    def start(self) -> None:
        """Make the folder and write down what the run is; results of an earlier run stay until there are new ones."""
        if not self.writes:
            return
        try:
            if self._lock is not None:
                self._begin()
                return
            # It was not there when the run was admitted.
            with locked_folder(self.path) as held:
                self._lock = self._own(held)
                if self.found() is not Found.NOTHING:
                    raise HalfbyteError(f"another process made --out {self.path} in the meantime; choose another --out")
                self._begin()
        except OSError as error:
            raise HalfbyteError(f"cannot use --out {self.path}: {reason(error)}; {remedy(error, '--out')}") from None

    def _begin(self) -> None:
        # First, or a run killed here would continue from another run's state.
        remove_state(self.path)
        write_files(self.path, {LOG: _line("start", settings=self.settings).encode()})

    def hold(self) -> None:
        """Keep other processes from writing there, where the folder is there; raises `HalfbyteError` where one does."""
        if self.writes and self._lock is None and self.path.is_dir():
            self._lock = self._own(lock(self.path))

    def _own(self, held: Lock | None) -> Lock:
        if held is None:
            raise HalfbyteError(
                f"another process writes into --out {self.path}; wait until it ends, or choose another --out"
            )
        return held

    def finish(self, recipe_yaml: str, metrics: dict[str, Any], findings: dict[str, Any]) -> None:
        """Write the results with their report, and drop the state that only a continuation needs."""
        if not self.writes:
            return
        page = RunFiles(self.path, metrics, recipe_yaml, findings).report()
        # Times of the artifact that was here before are not this one's.
        (self.path / BENCH).unlink(missing_ok=True)
        found = json.dumps(findings, separators=(",", ":"))
        write_files(self.path, {
            RECIPE: recipe_yaml.encode(), FINDINGS: found.encode(), REPORT: page_bytes(page),
            METRICS: json.dumps(metrics, indent=2).encode(),
        })  # fmt: skip
        self.log("finished")
        remove_state(self.path)

    def metrics(self) -> dict[str, Any]:
        """The results of a finished run."""
        return read_metrics(self.path)

    def log(self, event: str, **facts: Any) -> None:
        """Append one line of JSON to the log."""
        if not self.writes:
            return
        try:
            with (self.path / LOG).open("ab+") as file:
                # A run that was cut short may have left half a line.
                file.seek(max(file.tell() - 1, 0))
                file.write((b"" if file.read() in (b"", b"\n") else b"\n") + _line(event, **facts).encode())
        except OSError as error:
            raise HalfbyteError(f"cannot write to {self.path}: {reason(error)}; {remedy(error, '--out')}") from None

    def _entries(self) -> list[dict[str, Any]]:
        """The log's lines; none where it is no run's log."""
        try:
            lines = read_file(self.path / LOG, MAX_JSON_BYTES).decode().splitlines()
            entries = [entry for line in lines if (entry := _entry(line)) is not None]
        except (OSError, ValueError):
            return []
        return entries if entries and entries[0]["event"] == "start" else []


def _entry(line: str) -> dict[str, Any] | None:
    """A line of the log; None for one that was cut short."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None


def _line(event: str, **facts: Any) -> str:
    return json.dumps({"event": event, **facts}) + "\n"


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """The settings that differ, as paths such as `recipe.bits.weight`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [place for key in keys for place in _differences(before.get(key), now.get(key), f"{where}.{key}")]
    return [] if before == now else [where.lstrip(".") or "all of them"]
