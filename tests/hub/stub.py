"""A model hub on loopback: as much of its HTTP interface as the real client asks for, and faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_good"
LFS = (".safetensors", ".bin")


@dataclass
class Commit:
    """A state of a repository: its files, and its name by their contents."""

    files: dict[str, bytes]

    @property
    def sha(self) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=lambda: [Commit({".gitattributes": b"*.bin filter=lfs\n"})])
    # Listed beside the files, whatever that means.
    listed: list[str] = field(default_factory=list)

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.sha == revision), None)


class RefusalError(Exception):
    """An answer of 400 and above; `code` as the hub's header has it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def unspoilt(name: str, content: bytes) -> bytes:
    """A file as it is."""
    return content


@dataclass
class Stub:
    """What the hub holds, what it was asked, and how it misbehaves.

    `faults` are called with method and path before anything is answered, and may raise `RefusalError`; `spoil` changes
    a file's bytes on their way out, `sizes` how many they are said to be; `hold`, set, keeps the second half of every
    file back.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    faults: list[Callable[[str, str], None]] = field(default_factory=list)
    spoil: Callable[[str, bytes], bytes] = unspoilt
    sizes: dict[str, int] = field(default_factory=dict)
    hold: threading.Event | None = None
    held: threading.Event = field(default_factory=threading.Event)

    @property
    def store(self) -> str:
        """Where large files are, on another host as a real hub's are."""
        return self.address.replace("127.0.0.1", "localhost") + "/cdn/"

    def files(self, repository: str) -> dict[str, bytes]:
        return self.repositories[repository].commits[-1].files

    def refuse(self, pattern: str, status: int, message: str = "", code: str | None = None) -> None:
        def fault(method: str, path: str) -> None:
            if re.search(pattern, f"{method} {path}"):
                raise RefusalError(status, message, code)

        self.faults.append(fault)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.body = b"".join(parts)
        else:
            self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        try:
            for fault in self.hub.faults:
                fault(self.command, path)
            for pattern, method in ROUTES:
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    method(self, *found.groups())
                    return
            raise RefusalError(404, f"nothing at {path}")
        except RefusalError as refusal:
            headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._answer(json.dumps({"error": str(refusal)}).encode(), refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._answer(json.dumps(value).encode())

    def _must_know(self) -> None:
        given = self.headers.get("Authorization")
        if given != f"Bearer {TOKEN}":
            raise RefusalError(401, "Invalid credentials in Authorization header")

    def _commit(self, name: str, revision: str = "main") -> Commit:
        known = self.hub.repositories.get(name)
        if known is None or (known.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        found = known.at(revision)
        if found is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # What is asked

    def _root(self) -> None:
        self._answer(b"{}")

    def _create(self) -> None:
        self._must_know()
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.hub.repositories
        if not there:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repositories[name] = Repository(bool(private))
        self._answer(json.dumps({"url": f"{self.hub.address}/{name}", "name": name}).encode(), 409 if there else 200)

    def _validate(self) -> None:
        text = json.loads(self.body)["content"]
        head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            metadata = yaml.safe_load(head[1])
            for entry in metadata.get("model-index", ()):
                for result in entry["results"]:
                    assert result["dataset"]["type"]
                    assert result["dataset"]["name"]
                    assert result["metrics"]
            self._json({"errors": [], "warnings": []})
        except Exception as error:
            self._answer(json.dumps({"errors": [{"message": repr(error)}], "warnings": []}).encode(), 400)

    def _size(self, commit: Commit, name: str) -> int:
        return self.hub.sizes.get(name, len(commit.files.get(name, b"")))

    def _info(self, name: str, revision: str | None = None) -> None:
        commit = self._commit(name, revision or "main")
        known = self.hub.repositories[name]
        names = [*commit.files, *known.listed]
        self._json({
            "_id": "1", "id": name, "modelId": name, "sha": commit.sha, "private": known.private, "downloads": 0,
            "likes": 0, "tags": [], "siblings": [{"rfilename": one, "size": self._size(commit, one)} for one in names],
        })  # fmt: skip

    def _tree(self, name: str, revision: str) -> None:
        commit = self._commit(name, revision)
        names = [*commit.files, *self.hub.repositories[name].listed]
        self._json([
            {"type": "file", "path": one, "size": self._size(commit, one),
             "oid": hashlib.sha1(commit.files.get(one, b"")).hexdigest()}
            for one in names
        ])  # fmt: skip

    def _preupload(self, name: str, revision: str) -> None:
        self._must_know()
        self._commit(name, revision)
        files = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
             "shouldIgnore": False, "oid": None}
            for file in json.loads(self.body)["files"]
        ]  # fmt: skip
        self._json({"files": files, "commitOid": self._commit(name, revision).sha})

    def _batch(self, name: str) -> None:
        self._must_know()
        self._commit(name)
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.hub.address}/lfs/{wanted['oid']}"
            verify = {"href": f"{self.hub.address}/lfs/verify", "header": {}}
            actions = {"upload": {"href": href, "header": {}}, "verify": verify}
            known = wanted["oid"] in self.hub.objects
            answers.append(wanted | ({} if known else {"actions": actions}))
        self._json({"transfer": "basic", "objects": answers})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusalError(400, "the content has another sha256")
        self.hub.objects[oid] = self.body
        self._answer(b"", headers={"ETag": oid})

    def _verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise RefusalError(404, "the object is not there")
        self._json({})

    def _add(self, name: str, revision: str) -> None:
        self._must_know()
        files = dict(self._commit(name, revision).files)
        header, *lines = [json.loads(line) for line in self.body.splitlines()]
        assert header["value"]["summary"]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        commit = Commit(files)
        self.hub.repositories[name].commits.append(commit)
        url = f"{self.hub.address}/{name}/commit/{commit.sha}"
        self._json({"success": True, "commitUrl": url, "commitOid": commit.sha})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        commit = self._commit(name, revision)
        if file not in commit.files:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        content = self.hub.spoil(file, commit.files[file])
        etag = hashlib.sha256(commit.files[file]).hexdigest()
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"'}
        if file.endswith(LFS):
            self.hub.objects[etag] = content
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{etag}"'}
            self._answer(b"", 302, {**headers, **linked, "Location": self.hub.store + etag})
            return
        self._answer(content, headers=headers)

    def _content(self, oid: str) -> None:
        content = self.hub.objects[oid]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(content) // 2
        self.wfile.write(content[:half])
        if self.hub.hold is not None:
            self.wfile.flush()
            self.hub.held.set()
            self.hub.hold.wait(60)
        self.wfile.write(content[half:])


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"HEAD /?", Handler._root),
    (r"POST /api/repos/create", Handler._create),
    (r"POST /api/validate-yaml", Handler._validate),
    (rf"GET /api/models/{_NAME}", Handler._info),
    (rf"GET /api/models/{_NAME}/revision/(.+)", Handler._info),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)/?", Handler._tree),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", Handler._preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", Handler._batch),
    (r"PUT /lfs/(\w+)", Handler._store),
    (r"POST /lfs/verify", Handler._verify),
    (rf"POST /api/models/{_NAME}/commit/(.+)", Handler._add),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", Handler._resolve),
    (r"(?:GET|HEAD) /cdn/(\w+)", Handler._content),
]


@contextmanager
def running() -> Iterator[Stub]:
    """A hub that answers for the length of a with-block."""
    hub = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        if hub.hold is not None:
            hub.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
