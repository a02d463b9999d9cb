"""Commands in any order, killed or beside another process, and a user's own changes between them: each ends as what is
on the disk asks for."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tests.robustness.commands import Commands, Done, tree
from tests.robustness.damage import clear
from tests.robustness.verbs import MEASURED, VERBS, Inputs

from halfbyte.artifact_files import TENSORS
from halfbyte.locks import lock

# Three folders in one place, for whatever verb; and what is asked of a run, by a name.
FOLDERS = ("one", "two", "three")
ASKED: dict[str, dict[str, tuple[object, ...]]] = {
    "quantize": {"w4": (), "w3": ("--w-bits", 3)},
    "labels": {"few": (), "many": ("--crops", 3)},
}
EXPORTS = {"export onnx": "model.onnx", "export torchao": "scales.safetensors"}
STRAY = "notes.txt"
# Of a file system that changes about thirty times in a run, where a kill falls.
KILLS = st.integers(1, 34)

# What is in a folder's place.
NOTHING, OTHER, FILE, BEGUN, FINISHED = "nothing", "something else", "a file", "a begun run", "a finished run"


@dataclass(frozen=True)
class There:
    """What is in a folder's place, and what was asked of the verb that it is of.

    `older`: whether a begun run stands among an earlier one's results. `damaged`: whether a user changed its tensors.
    """

    what: str = NOTHING
    verb: str = ""
    asked: str = ""
    older: bool = False
    damaged: bool = False


def _holds(path: Path) -> There:
    """What a folder's own files say that it holds: the log of a run, or the header and shards of labels."""
    if path.is_file():
        return There(FILE)
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if not names - {"log.jsonl.part", "labels.json.part"}:
        return There()
    if "labels.json" in names:
        asked = "many" if json.loads((path / "labels.json").read_bytes())["crops"] == 3 else "few"
        return There(FINISHED if "labels-00000.safetensors" in names else BEGUN, "labels", asked)
    if "log.jsonl" not in names:
        return There(OTHER)
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines() if line.endswith("}")]
    asked = f"w{lines[0]['settings']['recipe']['bits']['weight']}"
    ended = any(line["event"] == "finished" for line in lines)
    return There(FINISHED if ended else BEGUN, "quantize", asked, older=not ended and TENSORS in names)


@dataclass(frozen=True)
class WithArtifact(Inputs):
    """Inputs with another artifact."""

    other_artifact: Path

    @property
    def artifact(self) -> Path:
        return self.other_artifact


class AnyOrder(RuleBasedStateMachine):
    """A place with three folders and what is known of each."""

    commands: Commands
    inputs: Inputs
    place: Path
    # What an undisturbed run leaves, by verb and what was asked.
    expected: dict[tuple[str, str], dict[str, str]]

    @initialize()
    def begin(self) -> None:
        clear(self.place)
        self.there = dict.fromkeys(FOLDERS, There())

    # What a user does

    @rule(
        name=st.sampled_from(FOLDERS),
        what=st.sampled_from([(verb, asked) for verb, known in ASKED.items() for asked in known]),
        option=st.sampled_from(["", "", "--resume", "--force"]), kill=st.none() | KILLS,
        busy=st.sampled_from([False] * 4 + [True]),
    )  # fmt: skip
    def write(self, name: str, what: tuple[str, str], option: str, kill: int | None, busy: bool) -> None:
        """A verb that writes a folder, killed before a change on disk or not, or while another process writes there."""
        verb, asked = what
        option = option if (verb, option) != ("labels", "--force") else ""
        path, before, disk = self.place / name, self.there[name], tree(self.place)
        held = lock(path) if busy and path.is_dir() else None
        command = (*VERBS[verb].command(self.inputs, path), *ASKED[verb][asked], *((option,) if option else ()))
        done = self.commands.run(*command, folder=self.place, die_before=None if held else kill)
        if held:
            held.release()
        if done.code == -signal.SIGKILL:
            self._killed(name, There(FINISHED, verb, asked))
            return
        shown = option == "--resume" and before.what == FINISHED and (before.verb, before.asked) == what
        if self._admitted(before, verb, asked, option) and (not held or (shown and verb == "quantize")):
            done.well()
            if shown:
                assert tree(self.place) == disk
            else:
                self.there[name] = There(FINISHED, verb, asked)
            self._check(name)
            return
        done.refused(*(("another process",) if held and before.what not in (FILE,) else ()), str(path))
        assert tree(self.place) == disk

    @precondition(lambda self: any(found.what != NOTHING for found in self.there.values()))
    @rule(name=st.sampled_from(FOLDERS), to=st.sampled_from(sorted(EXPORTS)), force=st.booleans())
    def export(self, name: str, to: str, force: bool) -> None:
        """A file made of a run's artifact."""
        out, disk = self.place / EXPORTS[to], tree(self.place)
        there = out.exists()
        command = VERBS[to].command(WithArtifact(self.inputs.folder, self.place / name), out)
        done = self.commands.run(*command, *(("--force",) if force else ()), folder=self.place)
        if self._ends(name, done, readable=force or not there):
            assert out.stat().st_size > 1000
        else:
            assert tree(self.place) == disk

    @rule(name=st.sampled_from(FOLDERS), title=st.sampled_from(["inspect", "eval"]))
    def read(self, name: str, title: str) -> None:
        """A verb that reads a run's artifact, and changes nothing."""
        disk = tree(self.place)
        command = VERBS[title].command(WithArtifact(self.inputs.folder, self.place / name))
        self._ends(name, self.commands.run(*command, folder=self.place))
        assert tree(self.place) == disk

    @rule(one=st.sampled_from(FOLDERS), other=st.sampled_from(FOLDERS))
    def compare(self, one: str, other: str) -> None:
        """Two runs beside each other; of one that is being replaced the earlier results."""
        disk = tree(self.place)
        done = self.commands.run("compare", self.place / one, self.place / other, folder=self.place)
        finished = [self._is_run(name) for name in (one, other)]
        if one == other or False in finished:
            done.refused(str(self.place))
        elif None not in finished:
            done.well()
        assert tree(self.place) == disk

    @rule(name=st.sampled_from(FOLDERS), how=st.sampled_from(["remove", "file", "stray", "damage", "half a line"]))
    def meddle(self, name: str, how: str) -> None:
        """A user's own hand on a folder."""
        path, found = self.place / name, self.there[name]
        if how in ("remove", "file") and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.there[name] = There()
        elif how == "file":
            path.write_text("mine")
            self.there[name] = There(FILE)
        elif how == "stray" and not path.is_file():
            path.mkdir(exist_ok=True)
            (path / STRAY).write_text("mine")
            self.there[name] = _holds(path)
        elif how == "damage" and found.what == FINISHED and found.verb == "quantize":
            content = bytearray((path / TENSORS).read_bytes())
            content[-1] ^= 1
            (path / TENSORS).write_bytes(content)
            self.there[name] = replace(found, damaged=not found.damaged)
        elif how == "half a line" and found.verb == "quantize":
            with (path / "log.jsonl").open("ab") as log:
                log.write(b'{"event": "fin')

    # What must be true

    def _admitted(self, before: There, verb: str, asked: str, option: str) -> bool:
        """Whether the verb may use the folder."""
        if before.what in (NOTHING, FILE):
            return before.what == NOTHING
        if option == "--force":
            return True
        same = (before.verb, before.asked) == (verb, asked)
        return option == "--resume" and before.what in (BEGUN, FINISHED) and same

    def _killed(self, name: str, asked: There) -> None:
        """Nothing, what was there, or what was asked for stands there, each as far as it came."""
        before, found = self.there[name], _holds(self.place / name)
        allowed = {(NOTHING, "", ""), (before.what, before.verb, before.asked)}
        allowed |= {(what, asked.verb, asked.asked) for what in (BEGUN, FINISHED)}
        assert (found.what, found.verb, found.asked) in allowed
        assert before.what == NOTHING or found.what != NOTHING
        kept = (found.what, found.verb, found.asked) == (before.what, before.verb, before.asked)
        self.there[name] = before if kept else found
        others = [other for other in FOLDERS if other != name]
        assert {other: _holds(self.place / other).what for other in others} == {
            other: self.there[other].what for other in others
        }

    def _check(self, name: str) -> None:
        """A finished folder holds to the byte what an undisturbed run leaves, and nothing half written."""
        found = self.there[name]
        if found.damaged:
            return
        ours = self.expected[found.verb, found.asked]
        held = {part: kind for part, kind in _lasting(self.place / name).items() if part in ours}
        assert held == ours
        assert not [path for path in (self.place / name).rglob("*.part") if path.name != "labels.json.part"]

    def _is_run(self, name: str) -> bool | None:
        """Whether a folder holds results of a run; None where those of an earlier one may be there in part."""
        found = self.there[name]
        if found.older:
            return None
        return found.what == FINISHED and found.verb == "quantize"

    def _ends(self, name: str, done: Done, readable: bool = True) -> bool:
        """Whether a verb that reads the folder's artifact was to succeed; asserts that it did or told."""
        found, is_run = self.there[name], self._is_run(name)
        if readable and not found.damaged and (is_run or (is_run is None and done.code == 0)):
            done.well()
        else:
            # What an export would replace is told before the artifact is read.
            done.refused(str(self.place))
        return done.code == 0


def _lasting(folder: Path) -> dict[str, str]:
    return {name: held for name, held in tree(folder).items() if Path(name).name not in MEASURED}


@pytest.mark.slow
def test_any_order(commands, inputs, place, tmp_path):
    """`HALFBYTE_ORDERS` sets how many orders of twelve commands are tried."""
    expected = {}
    for verb, known in ASKED.items():
        for asked, options in known.items():
            out = tmp_path / verb / asked
            commands.run(*VERBS[verb].command(inputs, out), *options, folder=tmp_path).well()
            expected[verb, asked] = _lasting(out)
    here = type("Here", (AnyOrder,), {"commands": commands, "inputs": inputs, "place": place, "expected": expected})
    run_state_machine_as_test(
        here,
        settings=settings(
            max_examples=int(os.environ.get("HALFBYTE_ORDERS", "25")), stateful_step_count=12, deadline=None,
            # To find a shorter order would take hours of commands.
            phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck), database=None,
        ),
    )  # fmt: skip
