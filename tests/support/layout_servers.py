"""Serves OCI layout folders over plain HTTP and as an S3 bucket, for tests; never used by the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore
from obstore.store import S3Store

from rafsfs.store.reference import Reference

BUCKET = "images"
S3_LOGIN = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def web_server(folder: Path, *, ranges: bool = True) -> Iterator[str]:
    """Serve a folder; gives the URL. With ``ranges`` false it sends whole files, whatever is asked."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range", ""))
            size = len(data)
            if wanted and ranges:
                first, last = int(wanted[1]), min(int(wanted[2]), size - 1)
                data = data[first : last + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 server, with an empty bucket; gives its endpoint."""
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            endpoint = next(
                found[1]
                for line in process.stderr
                if (found := re.search(r"(http://127\.0\.0\.1:\d+)", line))
            )
            threading.Thread(target=process.stderr.read, daemon=True).start()
            subprocess.run(
                [sys.executable, "-c", _MAKE_BUCKET, endpoint, BUCKET],
                check=True,
                env=os.environ | S3_LOGIN,
            )
            yield endpoint
        finally:
            process.kill()


_MAKE_BUCKET = (
    "import sys, urllib.request as u; "
    "u.urlopen(u.Request(f'{sys.argv[1]}/{sys.argv[2]}', method='PUT')).close()"
)


def upload(image: Reference, endpoint: str, prefix: str) -> str:
    """Put an image's folder into the bucket; gives the URL of the image."""
    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        access_key_id="test",
        secret_access_key="test",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    for path in image.folder.rglob("*"):
        if path.is_file():
            obstore.put(store, f"{prefix}/{path.relative_to(image.folder)}", path.read_bytes())
    return f"s3://{BUCKET}/{prefix}:{image.tag}"
