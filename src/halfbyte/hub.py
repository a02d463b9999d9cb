"""Artifacts in a model hub: pushed with a card in one commit, pulled whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from halfbyte.artifact_files import (
    CONFIG,
    MAX_BYTES,
    MAX_JSON_BYTES,
    PROGRAM,
    QUANTIZATION,
    TENSORS,
    class_labels,
    read_arrays,
    read_facts,
)
from halfbyte.errors import HalfbyteError
from halfbyte.hub_client import check_reachable, one_line, require_hub
from halfbyte.locks import lock
from halfbyte.model_card import artifact_of, model_card
from halfbyte.program.load import load_program
from halfbyte.run_files import METRICS, RECIPE, read_metrics

PREFIX = "hf-hub:"
CARD = "README.md"
NEEDED = (CONFIG, QUANTIZATION, TENSORS)
# All that is ever sent or fetched: whatever else a repository holds, pickles or paths that lead elsewhere, stays there.
# A report is a page, which a stranger's should not be opened as.
FILES = (*NEEDED, PROGRAM, METRICS, RECIPE, CARD)


def push(
    run: str | Path,
    repository: str,
    *,
    private: bool = False,
    endpoint: str | None = None,
) -> dict[str, Any]:
    """Upload the artifact of a run's folder in one commit, with its metrics, its recipe and a card.

    `repository` is OWNER/NAME; it is made where it does not exist. A README.md in the folder is the card; without one
    the card is generated. Returns "repository", "url", "revision" and "files" with their sizes. Raises `HalfbyteError`
    for what is no artifact or is damaged, without a token, and for all that the hub refuses; the repository is then as
    it was, though perhaps made.
    """
    require_hub("push")
    name, revision = named(repository)
    if revision is not None:
        raise HalfbyteError(f"{repository}: push goes to the main branch; leave @{revision} out")
    contents = _contents(Path(run), name)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    _quiet_client()
    if get_token() is None:
        raise HalfbyteError("there is no token for the hub; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi(endpoint=endpoint)
    with one_line(name, "push to"):
        check_reachable(endpoint)
        api.create_repo(name, private=private, exist_ok=True)
        known = api.model_info(name)
        if private and not known.private:
            raise HalfbyteError(f"{name} exists and is public, so --private cannot be; choose another repository")
        operations: list[Any] = [CommitOperationAdd(file, content) for file, content in contents.items()]
        there = {sibling.rfilename for sibling in known.siblings or ()}
        # Of an artifact that was there before nothing may be left that the new one has not.
        operations += [CommitOperationDelete(file) for file in FILES if file in there and file not in contents]
        commit = api.create_commit(name, operations, commit_message="Add the artifact")
    sizes = {file: len(content) for file, content in contents.items()}
    return {"repository": name, "url": f"{api.endpoint}/{name}", "revision": commit.oid, "files": sizes}


def pull(
    repository: str,
    out: str | Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
) -> dict[str, Any]:
    """Download an artifact into the new folder `out`, which appears only when all of it is there and checked.

    `repository` is OWNER/NAME, OWNER/NAME@REVISION, or that behind timm's `hf-hub:`; `revision` a branch, a tag or a
    commit. Returns "repository", "revision" (the commit) and "files" with their sizes. Raises `HalfbyteError` for a
    repository without an artifact or with a damaged one, for an `out` that holds something, and for all that the hub
    refuses; then nothing is left on the disk.
    """
    require_hub("pull")
    name, at = named(repository)
    out = Path(out)
    _check_out(out)
    from huggingface_hub import HfApi, hf_hub_download

    _quiet_client()
    with one_line(name, "pull from"):
        check_reachable(endpoint)
        found = HfApi(endpoint=endpoint).model_info(name, revision=revision or at, files_metadata=True)
    there = {sibling.rfilename: sibling.size or 0 for sibling in found.siblings or ()}
    if missing := [file for file in NEEDED if file not in there]:
        raise HalfbyteError(f"{name} holds no artifact of halfbyte: it has no {missing[0]}")
    files = [file for file in FILES if file in there]
    for file in files:
        if there[file] > (most := MAX_BYTES if file in (TENSORS, PROGRAM) else MAX_JSON_BYTES):
            raise HalfbyteError(f"{name}: {file} has {there[file]:,} bytes, and no artifact's has more than {most:,}")
    with _beside(out) as part:
        with one_line(name, "pull from"):
            for file in files:
                hf_hub_download(name, file, revision=found.sha, local_dir=part, endpoint=endpoint)
            shutil.rmtree(part / ".cache", ignore_errors=True)
        check_whole(part, name)
        sizes = {file: (part / file).stat().st_size for file in files}
    return {"repository": name, "revision": found.sha, "files": sizes}


def cached(reference: str) -> Path:
    """The folder of an artifact named `hf-hub:OWNER/NAME[@REVISION]`, in the hub's cache on this machine.

    What the cache holds is asked for again, and used as it is where the hub is out of reach. Raises `HalfbyteError` as
    `pull`.
    """
    require_hub(reference)
    name, revision = named(reference)
    from huggingface_hub import snapshot_download

    _quiet_client()
    files = [*NEEDED, PROGRAM]
    with one_line(name, "load"):
        try:
            check_reachable()
        except Exception:
            try:
                return Path(snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=True))
            except FileNotFoundError:
                pass
            raise
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))


def named(reference: str) -> tuple[str, str | None]:
    """Repository and revision of `[hf-hub:]OWNER/NAME[@REVISION]`; raises `HalfbyteError` for what is no such name."""
    name, _, revision = reference.removeprefix(PREFIX).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise HalfbyteError(f"{reference!r} names no repository; give OWNER/NAME")
    return name, revision or None


def check_whole(folder: Path, name: str) -> None:
    """Raise `HalfbyteError`, which calls the folder `name`, unless every file of the artifact in it is whole."""
    try:
        facts, _ = read_facts(folder)
        if (facts.get("program") or {}).get("sha256") is not None:
            load_program(folder)
        else:
            read_arrays(folder, facts["tensors_sha256"])
    except HalfbyteError as error:
        raise HalfbyteError(str(error).replace(str(folder), name)) from None


def _contents(run: Path, name: str) -> dict[str, bytes]:
    """What is uploaded, by file."""
    check_whole(run, str(run))
    facts, config = read_facts(run)
    contents = {file: (run / file).read_bytes() for file in FILES if (run / file).is_file()}
    if not (facts.get("program") or {}).get("sha256"):
        contents.pop(PROGRAM, None)
    metrics = read_metrics(run) if METRICS in contents else None
    # Runs of earlier versions do not say of which artifact their metrics are.
    measured = facts["tensors_sha256"] if metrics is None else metrics.get("tensors_sha256", facts["tensors_sha256"])
    if measured != facts["tensors_sha256"]:
        raise HalfbyteError(f"{run / METRICS} is not of the artifact beside it; quantize again with --force")
    if CARD not in contents:
        card = model_card(name, facts, config, metrics, class_labels(config))
        contents[CARD] = card.encode("utf-8", "replace")
    elif artifact_of(contents[CARD]) not in (None, facts["tensors_sha256"]):
        raise HalfbyteError(f"{run / CARD} is the card of another artifact; remove it, and a new one is made")
    # What was checked is what is sent, also if a run writes there meanwhile.
    if json.loads(contents[QUANTIZATION]) != facts or json.loads(contents[CONFIG]) != config:
        raise HalfbyteError(f"{run} changed while it was read; push again")
    return contents


def _check_out(out: Path) -> None:
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise HalfbyteError(f"cannot look at --out {out}: {error.strerror}; choose another --out") from None
    if taken:
        raise HalfbyteError(f"--out {out} exists; choose another --out, or remove it")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end of the with-block, or vanishes where that fails.

    A process that is killed leaves it, and the next one begins it anew; one at a time has it.
    """
    out = out.absolute()
    part = out.parent / f".{out.name}.part"
    try:
        made = [folder for folder in out.parents if not folder.exists()]
        part.mkdir(parents=True, exist_ok=True)
        # Only a folder that is one itself: what a link leads to is not ours to empty.
        held = lock(part, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        raise HalfbyteError(f"cannot write beside --out {out}: {error.strerror}; choose another --out") from None
    if held is None:
        raise HalfbyteError(f"another pull into {out} is under way; wait for it")
    try:
        for leftover in part.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield part
        _check_out(out)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
    finally:
        held.release()


def _quiet_client() -> None:
    """Bars are for a terminal, and remarks are ours to tell."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
