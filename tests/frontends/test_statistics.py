"""A mount's statistics as JSON and as Prometheus text: what each number is, and that both are well formed."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.images import build, opened

from rafsfs.frontends.statistics import collector, percentile_us, prometheus
from rafsfs.fuse.statistics import RequestStatistics
from rafsfs.reading.page_cache import PageCache

SOURCE = 'a "tree"\\with\nodd\udcff name'
SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """Of an image of which a file was read twice, and some invented requests."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "tree").mkdir()
    (folder / "tree" / "file").write_bytes(b"x" * 10_000)
    requests = RequestStatistics()
    for took_ns in (500, 3_000, 3_500, 300_000_000_000):
        requests.add("read", took_ns)
    requests.add("lookup", 9_000)
    with opened(build(folder / "tree", folder / "image")) as image:
        filesystem = image.filesystem
        collect = collector("devfuse", SOURCE, "0:57", requests, lambda: filesystem.engine)
        for _ in range(2):
            filesystem.read(filesystem.lookup(filesystem.root, b"file"), 0, 10_000)
        return json.loads(json.dumps(collect()))


class StuckFile:
    """A stored file that does not answer until it is let go."""

    def __init__(self, file):
        self.file = file
        self.name, self.size = file.name, file.size
        self.asked, self.let_go = threading.Event(), threading.Event()

    def read_range(self, offset, length):
        self.asked.set()
        assert self.let_go.wait(60)
        return self.file.read_range(offset, length)

    def close(self):
        self.file.close()


def test_snapshots_are_taken_while_the_store_hangs(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x" * 10_000)
    with opened(build(tmp_path / "tree", tmp_path / "image")) as image, ThreadPoolExecutor(1) as pool:
        filesystem = image.filesystem
        engine = filesystem.engine
        stuck = StuckFile(engine.blobs[0].file)
        engine.blobs = (replace(engine.blobs[0], file=stuck),)
        collect = collector("devfuse", SOURCE, "0:57", RequestStatistics(), lambda: engine)
        nid = filesystem.lookup(filesystem.root, b"file")
        reading = pool.submit(filesystem.read, nid, 0, 10_000)
        try:
            assert stuck.asked.wait(60)
            assert collect()["decoded"]["chunks"] == 0
        finally:
            stuck.let_go.set()
        assert b"".join(reading.result(60)) == b"x" * 10_000
        assert collect()["decoded"]["chunks"] == 1


def samples(text):
    """(name, labels) -> value, of lines that are all well formed."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert found.setdefault((name, labels or ""), float(value)) == float(value)
    return found


def test_snapshot_has_the_numbers(snapshot):
    assert snapshot["version"] == 1
    assert (snapshot["mount"]["device"], snapshot["mount"]["frontend"]) == ("0:57", "devfuse")
    assert snapshot["mount"]["uptime_s"] >= 0
    assert list(snapshot["requests"]) == ["lookup", "read"]
    assert snapshot["requests"]["read"]["count"] == 4
    assert snapshot["requests"]["read"]["buckets"] == {"1": 1, "4": 2, str(1 << 29): 1}
    assert snapshot["requests"]["read"]["seconds"] == pytest.approx(300.000007)
    assert snapshot["decoded"]["chunks"] == snapshot["cache"]["chunk_hits"] == 1
    assert snapshot["decoded"]["chunk_bytes"] >= 10_000
    assert 10_000 < snapshot["cache"]["used_bytes"] <= snapshot["cache"]["budget_bytes"]
    assert snapshot["failures"] == {"authentication": 0, "format": 0, "store": 0}


def test_prometheus_text_says_the_same(snapshot):
    text = prometheus(snapshot)
    found = samples(text)
    assert found["rafsfs_decoded_total", 'kind="chunk"'] == 1
    assert found["rafsfs_cache_used_bytes", ""] == snapshot["cache"]["used_bytes"]
    assert found["rafsfs_failures_total", 'kind="authentication"'] == 0
    assert found["rafsfs_request_seconds_count", 'opcode="read"'] == 4
    families = re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram)$", text, re.MULTILINE)
    assert len(families) == len(set(families))
    suffix = re.compile("_(bucket|sum|count)$")
    assert {suffix.sub("", name) for name, _ in found} == set(families)
    assert all(name.endswith("_total") for name in re.findall(r"^# TYPE (\S+) counter$", text, re.MULTILINE))


def test_prometheus_histogram_grows_to_its_count(snapshot):
    found = samples(prometheus(snapshot))
    buckets = [value for (name, labels), value in found.items() if 'opcode="read",le=' in labels]
    assert buckets == sorted(buckets)
    assert found["rafsfs_request_seconds_bucket", 'opcode="read",le="1e-06"'] == 1
    assert found["rafsfs_request_seconds_bucket", 'opcode="read",le="2e-06"'] == 1
    assert found["rafsfs_request_seconds_bucket", 'opcode="read",le="4e-06"'] == 3
    assert buckets[-2:] == [3, 4]  # five minutes are beyond the last bound but infinity


def test_names_in_labels_are_escaped(snapshot):
    text = prometheus(snapshot)
    assert 'source="a \\"tree\\"\\\\with\\nodd\\\\udcff name"' in text
    text.encode()


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, 0),
        ({"1": 10}, 0.5, 0.5),
        ({"8": 10}, 0.5, 6),
        ({"8": 10}, 1, 8),
        ({"8": 1, "1024": 1}, 0.5, 8),
        ({"1024": 1, "8": 1}, 0.75, 768),
        ({"2": 99, "4096": 1}, 0.99, 2),
    ],
)
def test_percentile_lies_in_its_bucket(buckets, share, expected):
    assert percentile_us(buckets, share) == pytest.approx(expected)


def test_a_new_server_goes_on_counting(snapshot):
    requests = RequestStatistics()
    requests.add("read", 3_200)
    requests.add("readlink", 100)
    engine = SimpleNamespace(cache=PageCache(1000), ahead_used=2, fetch_state=None)
    now = collector("erofs", "another", "0:57", requests, lambda: engine, snapshot)()
    read, before = now["requests"]["read"], snapshot["requests"]["read"]
    assert read["count"] == before["count"] + 1
    assert read["seconds"] == pytest.approx(before["seconds"] + 3.2e-6)
    assert read["buckets"] == before["buckets"] | {"4": before["buckets"]["4"] + 1}
    assert now["requests"]["lookup"] == snapshot["requests"]["lookup"]
    assert now["requests"]["readlink"]["count"] == 1
    assert now["decoded"] == snapshot["decoded"]
    assert now["cache"]["budget_bytes"] == 1000
    assert now["cache"]["used_bytes"] == 0
    assert now["cache"]["chunk_hits"] == snapshot["cache"]["chunk_hits"] > 0
    assert now["read_ahead"]["used"] == snapshot["read_ahead"]["used"] + 2
    assert now["mount"]["uptime_s"] >= snapshot["mount"]["uptime_s"]
    assert now["mount"]["frontend"] == "erofs"
    assert now.keys() == snapshot.keys()
    other = collector("erofs", "x", "0:57", requests, lambda: engine, snapshot | {"version": 2})()
    assert other["requests"]["read"]["count"] == 1
