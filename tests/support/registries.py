"""Starts Debian's docker-registry on loopback for tests, and fills it; never used by the package."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rafsfs.store.reference import Reference, RegistryReference

USER, PASSWORD = "carol", "correct horse"
_BCRYPT = "$2b$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e"
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:[0-9]+)")


@dataclass(frozen=True)
class Registry:
    """A registry that runs. ``host`` is address and port, ``folder`` where it keeps its files."""

    host: str
    folder: Path

    def reference(self, repository: str, tag: str = "latest") -> RegistryReference:
        return RegistryReference(self.host, repository, tag)

    def push(self, image: Reference, repository: str, tag: str, *options: str) -> RegistryReference:
        """Have skopeo copy an image there."""
        target = self.reference(repository, tag)
        words = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options, f"oci:{image}"]
        done = subprocess.run([*words, str(target)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    def blob_file(self, digest: str) -> Path:
        """Where the registry keeps a blob."""
        digits = digest.removeprefix("sha256:")
        return self.folder / "docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"


@contextmanager
def registry(folder: Path, *, login: bool = False, **http: object) -> Iterator[Registry]:
    """Run a registry until the end; with ``login`` it wants USER and PASSWORD. ``http``: its settings."""
    data = folder / "data"
    data.mkdir(parents=True)
    settings: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
        "http": {"addr": "127.0.0.1:0", "secret": "not one"} | http,
    }
    if login:
        (folder / "htpasswd").write_text(f"{USER}:{_BCRYPT}\n")
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    config = folder / "config.yml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    log = (folder / "log").open("wb")
    with (
        log,
        subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin", "OTEL_TRACES_EXPORTER": "none"},
        ) as process,
    ):
        assert process.stderr is not None
        try:
            yield Registry(_address(process), data)
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := _LISTENING.search(line):
            # whatever it says later must not fill the pipe
            _drain(process)
            return found[1]
    raise AssertionError("".join(said))


def _drain(process: subprocess.Popen[str]) -> None:
    import threading

    def read() -> None:
        assert process.stderr is not None
        try:
            for _ in process.stderr:
                pass
        except ValueError:  # closed
            pass

    threading.Thread(target=read, daemon=True).start()
