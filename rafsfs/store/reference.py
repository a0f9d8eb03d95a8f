"""How an image is named on the command line and in the API; parses names, opens nothing.

The spellings are those of skopeo's transports (containers-transports(5)), and URLs for object stores.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from rafsfs.errors import ImageNotFound

DEFAULT_TAG = "latest"
DOCKER_HUB = "docker.io"
URL_SCHEMES = ("s3", "gs", "az", "http", "https")
"""Of object stores, and of plain web servers that hold a layout folder."""

_TRANSPORTS = ("oci:", "oci-archive:", "docker-archive:")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # OCI distribution-spec, 'Pulling manifests'
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY = re.compile(  # OCI distribution-spec, 'Pulling manifests': <name>
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_REPOSITORY_CHARS_MAX = 255  # of host and name together, as the specification advises clients
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_URL = re.compile(r"[!$&-;=A-Z_a-z~%]+")  # printable, without what begins queries, fragments and user names


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in an OCI layout folder, by tag or by the digest of its manifest (which then is verified)."""

    folder: Path
    tag: str | None = DEFAULT_TAG
    digest: str | None = None

    def pinned(self, digest: str) -> Reference:
        """The same image, but only with this manifest digest; raises ImageNotFound when it is not one."""
        return _pinned(self, digest)

    def __str__(self) -> str:
        text = f"{self.folder}{_suffix(self.tag, self.digest)}"
        return f"oci:{text}" if text.startswith(_TRANSPORTS) else text


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image in a registry. ``host`` may have a port; ``repository`` is as the registry's API names it."""

    host: str
    repository: str
    tag: str | None = DEFAULT_TAG
    digest: str | None = None

    def pinned(self, digest: str) -> RegistryReference:
        """As ``Reference.pinned``."""
        return _pinned(self, digest)

    def __str__(self) -> str:
        return f"docker://{self.host}/{self.repository}{_suffix(self.tag, self.digest)}"


@dataclass(frozen=True, slots=True)
class ArchiveReference:
    """An image in a tar file that holds an OCI layout; without tag and digest it is the only one in it."""

    file: Path
    tag: str | None = None
    digest: str | None = None

    def pinned(self, digest: str) -> ArchiveReference:
        """As ``Reference.pinned``."""
        return _pinned(self, digest)

    def __str__(self) -> str:
        return f"oci-archive:{self.file}{_suffix(self.tag, self.digest)}"


@dataclass(frozen=True, slots=True)
class BucketReference:
    """An image in an OCI layout below a URL: a prefix of an object store's bucket, or a web server's folder.

    ``url`` has no slash at its end.
    """

    url: str
    tag: str | None = DEFAULT_TAG
    digest: str | None = None

    def pinned(self, digest: str) -> BucketReference:
        """As ``Reference.pinned``."""
        return _pinned(self, digest)

    def __str__(self) -> str:
        # or the tag would be taken for a port
        end = "" if "/" in self.url.partition("://")[2] else "/"
        return f"{self.url}{end}{_suffix(self.tag, self.digest)}"


@dataclass(frozen=True, slots=True)
class DockerArchiveReference:
    """An image in a tar file as ``docker save`` writes it: a source of conversion, never a sealed image.

    ``name`` is one of its RepoTags, ``name:tag``; None for the only image in it.
    """

    file: Path
    name: str | None = None

    def __str__(self) -> str:
        return f"docker-archive:{self.file}{f':{self.name}' if self.name else ''}"


ImageReference: TypeAlias = Reference | RegistryReference | ArchiveReference | BucketReference
"""Where a sealed image can be."""

SourceReference: TypeAlias = ImageReference | DockerArchiveReference
"""Where an image to convert can be."""

_R = TypeVar("_R", Reference, RegistryReference, ArchiveReference, BucketReference)


def _pinned(reference: _R, digest: str) -> _R:
    if not _DIGEST.fullmatch(digest):
        raise ImageNotFound(f"{digest!r} is not a digest", expected="sha256:<64 hex digits>")
    return replace(reference, tag=None, digest=digest)


def _suffix(tag: str | None, digest: str | None) -> str:
    return f"@{digest}" if digest else f":{tag}" if tag else ""


def starts_threads(reference: ImageReference) -> bool:
    """Whether the library that reads it starts threads, which no forked child has."""
    return isinstance(reference, BucketReference) and not reference.url.startswith("http")


def absolute(reference: ImageReference) -> ImageReference:
    """The same image, named so that it is found from any folder."""
    if isinstance(reference, Reference):
        return replace(reference, folder=reference.folder.absolute())
    if isinstance(reference, ArchiveReference):
        return replace(reference, file=reference.file.absolute())
    return reference


def parse_reference(text: str) -> ImageReference:
    """Read the name of a sealed image; raises ImageNotFound.

    ``[oci:]FOLDER[:TAG]``, ``docker://HOST[:PORT]/REPOSITORY[:TAG]``, ``oci-archive:FILE[:TAG]``,
    ``s3://BUCKET/PREFIX[:TAG]`` and other URLs; each with ``@sha256:DIGEST`` in place of the tag. In a path
    what follows the last colon is a tag unless it holds a slash; without one the tag is ``latest``.
    """
    found = parse_source_reference(text)
    if isinstance(found, DockerArchiveReference):
        raise ImageNotFound(
            f"{text!r} is not a sealed image", hint="`rafsfs convert` makes one of a docker-archive"
        )
    return found


def parse_layout_reference(text: str) -> Reference:
    """Read the name of an image in a layout folder, for who writes there; raises ImageNotFound for others."""
    found = parse_reference(text)
    if not isinstance(found, Reference):
        raise ImageNotFound(
            f"{text!r} is not in a local folder",
            expected="FOLDER[:TAG]",
            hint="`rafsfs pull` brings an image into one, `rafsfs push` sends it back",
        )
    return found


def parse_source_reference(text: str) -> SourceReference:
    """As ``parse_reference``, and ``docker-archive:FILE[:NAME:TAG]``, which can only be converted."""
    try:
        is_path = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise ImageNotFound(f"{text!a} names no image", expected="a path without NULs")
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "docker":
        return _registry(text, rest)
    if separator and scheme in URL_SCHEMES:
        return _bucket(text, scheme, rest)
    transport, _, name = text.partition(":")
    if transport == "docker-archive":
        return _docker_archive(text, name)
    if transport == "oci-archive":
        path, tag, digest = _path_tag_digest(text, name, "oci-archive:FILE[:TAG]")
        return ArchiveReference(Path(path), tag, digest)
    name = text.removeprefix("oci:")
    path, tag, digest = _path_tag_digest(text, name, "FOLDER[:TAG]")
    return Reference(Path(path), tag or (None if digest else DEFAULT_TAG), digest)


def _path_tag_digest(text: str, name: str, expected: str) -> tuple[str, str | None, str | None]:
    """Take a digest, or else a tag, off the end of a path."""
    path, at, digest = name.rpartition("@")
    if at and path and digest.startswith("sha256:"):
        return path, None, _checked_digest(digest)
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, ""
    if not path or ((tag or path != name) and not _TAG.fullmatch(tag)):
        raise _nothing(text, expected, "a tag is letters, digits, . _ -")
    return path, tag or None, None


def _checked_digest(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise ImageNotFound(f"{digest!r} is not a digest", expected="sha256:<64 hex digits>")
    return digest


def _registry(text: str, name: str) -> RegistryReference:
    """``HOST[:PORT]/REPOSITORY``; a first part that cannot be a host belongs to Docker Hub's repository.

    The rules for that are those of distribution's reference package: a host has a dot or a colon, or is
    localhost; a single word is in ``library/`` there.
    """
    expected = "docker://HOST[:PORT]/REPOSITORY[:TAG]"
    name, at, digest = name.partition("@")
    pinned = _checked_digest(digest) if at else None
    host, _, repository = name.partition("/")
    if not repository or not (set(host) & set(".:") or host == "localhost"):
        host, repository = DOCKER_HUB, name
    if host in (DOCKER_HUB, f"index.{DOCKER_HUB}"):
        host = DOCKER_HUB
        if "/" not in repository:
            repository = f"library/{repository}"
    repository, colon, tag = repository.partition(":")
    if not _HOST.fullmatch(host) or int(host.rpartition(":")[2] if _has_port(host) else 1) not in range(
        1, 65536
    ):
        raise _nothing(text, expected, f"{host!r} is no host")
    if not _REPOSITORY.fullmatch(repository) or len(host) + len(repository) > _REPOSITORY_CHARS_MAX:
        raise _nothing(text, expected, "a repository is lower-case letters, digits, . _ - and /")
    if colon and not _TAG.fullmatch(tag):
        raise _nothing(text, expected, "a tag is letters, digits, . _ -")
    return RegistryReference(host, repository, None if pinned else tag or DEFAULT_TAG, pinned)


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _bucket(text: str, scheme: str, rest: str) -> BucketReference:
    expected = f"{scheme}://{'HOST/FOLDER' if scheme.startswith('http') else 'BUCKET/PREFIX'}[:TAG]"
    rest, at, digest = rest.partition("@")
    pinned = _checked_digest(digest) if at else None
    host, _, path = rest.partition("/")
    path, colon, tag = path.rpartition(":")
    if not colon:
        path, tag = tag, DEFAULT_TAG
    path = path.rstrip("/")
    if not _HOST.fullmatch(host) or (path and not _URL.fullmatch(path)) or "//" in f"/{path}":
        raise _nothing(text, expected, "user names, queries and fragments are not taken")
    if not _TAG.fullmatch(tag):
        raise _nothing(text, expected, "a tag is letters, digits, . _ -")
    url = f"{scheme}://{host}" + (f"/{path}" if path else "")
    return BucketReference(url, None if pinned else tag, pinned)


def _docker_archive(text: str, name: str) -> DockerArchiveReference:
    file, _, image = name.partition(":")
    if not file or (":" in name and not image):
        raise _nothing(text, "docker-archive:FILE[:NAME:TAG]", None)
    if image and ":" not in image.rpartition("/")[2]:
        image = f"{image}:{DEFAULT_TAG}"
    return DockerArchiveReference(Path(file), image or None)


def _nothing(text: str, expected: str, hint: str | None) -> ImageNotFound:
    return ImageNotFound(f"{text!r} names no image", expected=expected, hint=hint)
