"""The rooms and who may import whom, asserted by reading every module's syntax tree; imports none."""

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GROUND = {"rafsfs.types", "rafsfs.limits", "rafsfs.errors"}
FORMAT = GROUND | {"rafsfs.format"}
TRUST = FORMAT | {"rafsfs.trust"}
DECODE = TRUST | {"rafsfs.decode"}
STORE = TRUST | {"rafsfs.store"}
METADATA = DECODE | {"rafsfs.metadata"}
READING = DECODE | STORE | {"rafsfs.reading"}
FS = METADATA | READING | {"rafsfs.fs"}
FRONTENDS = FS | {"rafsfs.frontends", "rafsfs.fuse", "vhost"}

MAY_IMPORT = {
    "rafsfs.types": GROUND,
    "rafsfs.limits": GROUND,
    "rafsfs.errors": GROUND,
    "rafsfs.format": FORMAT,
    "rafsfs.trust": TRUST,
    "rafsfs.decode": DECODE,
    "rafsfs.store": STORE,
    "rafsfs.metadata": METADATA,
    "rafsfs.reading": READING,
    "rafsfs.fs": FS,
    "rafsfs.fuse": FORMAT | {"rafsfs.fuse"},  # it is given its handler
    "rafsfs.frontends": FRONTENDS,
    "rafsfs.build": FS | {"rafsfs.build"},
    "rafsfs.cli": FRONTENDS | {"rafsfs", "rafsfs.build", "rafsfs.cli"},
    "rafsfs": FRONTENDS,  # the public API
    "rafsfs.__main__": {"rafsfs.cli"},
    "vhost": {"vhost"},
}
"""Room -> rooms. A new room, or a new module beside the rooms, gets its line here."""

NETWORK = {
    *("socket", "socketserver", "ssl", "select", "selectors", "asyncio", "anyio", "http", "urllib", "ftplib"),
    *("httpx", "httpcore", "requests", "aiohttp", "urllib3", "boto3", "pyfuse3"),
}
PROCESSES = {"subprocess", "multiprocessing", "pty", "signal"}
FILES = {"pathlib", "shutil", "tempfile", "glob", "fcntl", "mmap", "io", "os", "sqlite3", "open"}
TASKS = {"trio", "threading", "concurrent", "queue", "sched"}
INPUT_OUTPUT = NETWORK | PROCESSES | FILES

FORBIDDEN = {
    "rafsfs/types.py": INPUT_OUTPUT | TASKS,
    "rafsfs/limits.py": INPUT_OUTPUT | TASKS,
    "rafsfs/errors.py": INPUT_OUTPUT | TASKS,
    "rafsfs/format/*": INPUT_OUTPUT | TASKS,
    "rafsfs/trust/*": INPUT_OUTPUT | TASKS,
    "rafsfs/trust/keys.py": NETWORK | PROCESSES | TASKS,  # key files are read here
    "rafsfs/decode/*": INPUT_OUTPUT | (TASKS - {"threading"}),  # a native codec belongs to one thread
    "rafsfs/metadata/*": INPUT_OUTPUT | TASKS,
    "rafsfs/reading/*": INPUT_OUTPUT,  # it waits and uses threads, but bytes come through store
    "rafsfs/fs/*": INPUT_OUTPUT,
    "rafsfs/fuse/*": INPUT_OUTPUT | TASKS,
    "rafsfs/store/*": PROCESSES,
    "rafsfs/store/registry_logins.py": PROCESSES - {"subprocess"},  # credential helpers are programs
}
"""File pattern -> modules that do what the room must leave to others; the last pattern that fits counts.

``open`` stands for the builtin.
"""

HARMLESS = {
    "os": {"fsencode", "fsdecode", "major", "makedev", "minor", "strerror", "urandom"},
    "io": {"SEEK_SET", "SEEK_CUR", "SEEK_END"},
}
"""What even a room without input and output may use: pure functions, constants, random numbers."""

VERIFIED_BYTES_MAKER = "rafsfs/decode/*"


def room_of(module: str) -> str:
    """The innermost room that ``module`` lies in by its name; nothing when it is not ours."""
    around = [room for room in MAY_IMPORT if module == room or module.startswith(room + ".")]
    return max(around, key=len, default="")


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """Every (line, dotted name) that is imported, late and by ``import_module`` as well.

    ``from a import b`` gives ``a.b``, for b may be a module; whoever looks only at rooms need not know.
    """
    package = module_name(path).split(".")
    if not path.endswith("/__init__.py"):
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called_name(node) in {"import_module", "__import__"}:
            for word in node.args[:1]:
                if isinstance(word, ast.Constant) and isinstance(word.value, str):
                    yield node.lineno, word.value


def called_name(call: ast.Call) -> str:
    """The last part of what is called: ``f`` for ``f()`` and for ``a.f()``."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def order_violations(tree: ast.Module, path: str) -> Iterator[str]:
    """Imports that go up, or sideways into a room that is none of this one's business."""
    module = module_name(path)
    room = room_of(module)
    if room == "rafsfs" and module != room:
        yield f"{path}:1: belongs to no room that MAY_IMPORT knows"
        return
    for line, name in imports(tree, path):
        target = room_of(name)
        if target and target not in MAY_IMPORT[room]:
            yield f"{path}:{line}: {room} imports {name}, but {target} is not beneath it"


def input_output_violations(tree: ast.Module, path: str) -> Iterator[str]:
    """Modules and calls for input and output in a room that leaves these to others."""
    fitting = [names for pattern, names in FORBIDDEN.items() if fnmatch.fnmatch(path, pattern)]
    forbidden = fitting[-1] if fitting else set()
    partly = {}  # local name of a module of which some names are harmless
    for line, name in imports(tree, path):
        top, _, rest = name.partition(".")
        if top in HARMLESS and (not rest or rest in HARMLESS[top]):
            partly[top] = top
        elif top in forbidden:
            yield f"{path}:{line}: imports {name}: input and output are not this room's"
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=top), attr=used) if top in partly and top in forbidden:
                if used not in HARMLESS[top]:
                    yield f"{path}:{node.lineno}: uses {top}.{used}: input and output are not this room's"
            case ast.alias(name=top, asname=str(other)) if top in HARMLESS and top in forbidden:
                yield f"{path}:{node.lineno}: imports {top} as {other}: its own name is looked for here"
            case ast.Call(func=ast.Name(id="open")) if "open" in forbidden:
                yield f"{path}:{node.lineno}: calls open(): input and output are not this room's"


def verified_bytes_violations(tree: ast.Module, path: str) -> Iterator[str]:
    """Bytes called verified by somebody who verified nothing: ``VerifiedBytes(x)`` or a cast to it."""
    if fnmatch.fnmatch(path, VERIFIED_BYTES_MAKER):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            made = called_name(node)
            if made == "cast" and node.args:
                made = ast.unparse(node.args[0]).strip("'\"").rpartition(".")[2]
            if made == "VerifiedBytes":
                yield f"{path}:{node.lineno}: makes VerifiedBytes, which only rafsfs/decode may"


CHECKS = [order_violations, input_output_violations, verified_bytes_violations]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_project_keeps_to_its_rooms(check):
    paths = sorted(path for package in ("rafsfs", "vhost") for path in (ROOT / package).rglob("*.py"))
    assert len(paths) > len(MAY_IMPORT) / 2
    found = []
    for path in paths:
        relative = path.relative_to(ROOT).as_posix()
        found += check(ast.parse(path.read_text("utf-8"), str(path)), relative)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


# The checks above are worth as much as what they find.

BROKEN = [
    (order_violations, "rafsfs/format/x.py", "import rafsfs.trust.keys"),
    (order_violations, "rafsfs/format/x.py", "from rafsfs import trust"),
    (order_violations, "rafsfs/format/x.py", "from ..trust import keys"),
    (order_violations, "rafsfs/format/__init__.py", "from .. import trust"),
    (order_violations, "rafsfs/format/x.py", "from rafsfs import open_image"),
    (order_violations, "rafsfs/limits.py", "import rafsfs.format"),
    (order_violations, "rafsfs/trust/x.py", "def late():\n    from rafsfs.decode import aead"),
    (order_violations, "rafsfs/decode/x.py", "if TYPE_CHECKING:\n    from rafsfs.store.base import Store"),
    (order_violations, "rafsfs/metadata/x.py", "from rafsfs.store import base"),
    (order_violations, "rafsfs/metadata/x.py", "from rafsfs.reading.engine import ReadEngine"),
    (order_violations, "rafsfs/reading/x.py", "from rafsfs.metadata.tree import Tree"),
    (order_violations, "rafsfs/fs/x.py", "from rafsfs.build.scan import scan"),
    (order_violations, "rafsfs/fs/x.py", "importlib.import_module('rafsfs.frontends.library')"),
    (order_violations, "rafsfs/fuse/x.py", "from rafsfs.fs.filesystem import FileSystem"),
    (order_violations, "rafsfs/frontends/x.py", "from rafsfs.cli import options"),
    (order_violations, "rafsfs/frontends/x.py", "from rafsfs.build import writer"),
    (order_violations, "rafsfs/build/x.py", "from rafsfs.frontends import library"),
    (order_violations, "rafsfs/build/x.py", "__import__('rafsfs.cli.main')"),
    (order_violations, "vhost/x.py", "from rafsfs.errors import RafsError"),
    (order_violations, "rafsfs/novelty/x.py", ""),
    (order_violations, "rafsfs/novelty.py", ""),
    (input_output_violations, "rafsfs/format/x.py", "import socket"),
    (input_output_violations, "rafsfs/format/x.py", "from concurrent.futures import Future"),
    (input_output_violations, "rafsfs/decode/x.py", "def late():\n    import http.client"),
    (input_output_violations, "rafsfs/trust/x.py", "from pathlib import Path"),
    (input_output_violations, "rafsfs/trust/x.py", "import os\nos.open('a', 0)"),
    (input_output_violations, "rafsfs/trust/x.py", "from os import open"),
    (input_output_violations, "rafsfs/trust/x.py", "import os as innocent"),
    (input_output_violations, "rafsfs/trust/x.py", "import os.path"),
    (input_output_violations, "rafsfs/trust/keys.py", "import subprocess"),
    (input_output_violations, "rafsfs/metadata/x.py", "open('a')"),
    (input_output_violations, "rafsfs/reading/x.py", "import trio, socket"),
    (input_output_violations, "rafsfs/fs/x.py", "import pyfuse3"),
    (verified_bytes_violations, "rafsfs/reading/x.py", "VerifiedBytes(b'')"),
    (verified_bytes_violations, "rafsfs/reading/x.py", "types.VerifiedBytes(b'')"),
    (verified_bytes_violations, "rafsfs/store/x.py", "cast('VerifiedBytes', b'')"),
    (verified_bytes_violations, "rafsfs/store/x.py", "typing.cast(types.VerifiedBytes, b'')"),
]

SOUND = [
    (
        order_violations,
        "rafsfs/format/x.py",
        "from rafsfs import limits\nfrom rafsfs.errors import FormatError",
    ),
    (
        order_violations,
        "rafsfs/fs/__init__.py",
        "from .filesystem import FileSystem\nfrom ..metadata import tree",
    ),
    (
        order_violations,
        "rafsfs/cli/x.py",
        "import rafsfs\nfrom rafsfs.build import writer\nimport vhost.device",
    ),
    (order_violations, "rafsfs/__init__.py", "from rafsfs.frontends import library"),
    (order_violations, "vhost/x.py", "import rafsfsck\nfrom . import messages"),
    (input_output_violations, "rafsfs/trust/x.py", "import os\nfrom os import fsencode\nos.urandom(32)"),
    (input_output_violations, "rafsfs/trust/keys.py", "import os\nos.open('a', 0)\nopen('a')"),
    (input_output_violations, "rafsfs/fs/x.py", "import trio\nimage.open('a')"),
    (verified_bytes_violations, "rafsfs/decode/x.py", "VerifiedBytes(b'')"),
    (
        verified_bytes_violations,
        "rafsfs/fs/x.py",
        "def read() -> VerifiedBytes: return cast(bytes, pages[0])",
    ),
]


@pytest.mark.parametrize(("check", "path", "source"), BROKEN)
def test_check_finds(check, path, source):
    assert len(list(check(ast.parse(source), path))) == 1


@pytest.mark.parametrize(("check", "path", "source"), SOUND)
def test_check_leaves_alone(check, path, source):
    assert list(check(ast.parse(source), path)) == []
