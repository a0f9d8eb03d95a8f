"""Images in a registry, a bucket, a web server and an archive: every command reads what was built."""

import errno
import json
import subprocess

import pytest
from support.fault_proxy import Fault, fault_proxy
from support.images import KEY, build
from support.layout_servers import S3_LOGIN, s3_server, upload, web_server
from support.mounts import mounting, rafsfs, read_error
from support.registries import registry
from support.trees import Planned, PlannedSource, Segment, assert_same_tree, expected, read_folder

from rafsfs.format.erofs import FileType
from rafsfs.limits import KIB
from rafsfs.trust.keys import save_key

pytestmark = pytest.mark.integration

PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"d", FileType.DIRECTORY),
    Planned(b"d/small", FileType.REGULAR, segments=(Segment(100, 2),)),
    Planned(b"large", FileType.REGULAR, segments=(Segment(700 * KIB, 1),)),
    Planned(b"link", FileType.SYMLINK, target=b"large"),
)
PLACES = ("registry", "s3", "web", "archive")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Place -> reference; all servers run."""
    folder = tmp_path_factory.mktemp("remote")
    save_key(KEY, folder / "key")
    image = build(PlannedSource(PLAN), folder / "image", "v1")
    archive = f"oci-archive:{folder}/a.tar"
    subprocess.run(["skopeo", "copy", "--quiet", f"oci:{image}", archive], check=True)
    with (
        registry(folder / "registry") as server,
        s3_server() as endpoint,
        web_server(folder) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in (S3_LOGIN | {"AWS_ENDPOINT_URL": endpoint}).items():
            patch.setenv(name, value)
        yield {
            "registry": str(server.push(image, "t/a", "v1")),
            "s3": upload(image, endpoint, "some/where"),
            "web": f"{url}/image:v1",
            "archive": archive,
            "key": folder / "key",
        }


@pytest.mark.parametrize("place", PLACES)
def test_the_mount_is_the_tree(images, place, tmp_path):
    (tmp_path / "m").mkdir()
    with mounting(images[place], tmp_path / "m", "--key", images["key"]) as mounted:
        assert_same_tree(expected(PLAN), read_folder(mounted))


@pytest.mark.parametrize("place", PLACES)
def test_a_new_server_opens_it_too(images, place, tmp_path):
    (tmp_path / "m").mkdir()
    options = ("--node-cache", tmp_path / "cache", "--deadline", "50")
    with mounting(images[place], tmp_path / "m", "--key", images["key"], *options) as mounted:
        with (mounted / "large").open("rb") as file:
            for _ in range(2):
                done = rafsfs("upgrade", mounted, "--deadline", "40")
                assert (done.returncode, done.stderr) == (0, "")
            assert file.read() == Segment(700 * KIB, 1).plain()
        assert_same_tree(expected(PLAN), read_folder(mounted))


@pytest.mark.parametrize("place", PLACES)
def test_commands_look_into_it(images, place):
    key = "--key", images["key"]
    assert rafsfs("cat", images[place], "/d/small", *key, text=False).stdout == Segment(100, 2).plain()
    listed = json.loads(rafsfs("ls", images[place], "/", "--json", *key).stdout)
    assert "large" in json.dumps(listed)
    checked = rafsfs("check", images[place], *key)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    shown = rafsfs("inspect", images[place], "--json")
    assert json.loads(shown.stdout)["image"] == images[place]


@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_there_is_told_in_one_line(images, place, tmp_path):
    (tmp_path / "m").mkdir()
    missing = images[place].replace(":v1", ":v2") if ":v1" in images[place] else f"{images[place]}:v2"
    done = rafsfs("mount", missing, tmp_path / "m", "--key", images["key"])
    assert done.returncode == {"s3": 9, "registry": 3}.get(place, 11)
    assert done.stderr.startswith("rafsfs: no ")
    assert done.stderr.count("\n") == 1


def test_server_without_ranges_still_serves_small_images(images, tmp_path):
    folder = images["key"].parent
    with web_server(folder, ranges=False) as url:
        done = rafsfs("cat", f"{url}/image:v1", "/large", "--key", images["key"], text=False)
    assert done.stdout == Segment(700 * KIB, 1).plain()


def test_a_local_folder_is_wanted_where_an_image_is_written(images):
    done = rafsfs("keys", "sign", images["registry"], "--signing-key", images["key"])
    assert done.returncode == 3
    assert "not in a local folder" in done.stderr


def test_mount_outlives_a_registry_that_is_away(images, tmp_path, tally):
    host = images["registry"].split("/")[2]
    (tmp_path / "m").mkdir()
    log = tmp_path / "log"
    with fault_proxy(host) as proxy:
        options = ("--node-cache", tmp_path / "cache", "--deadline", "1", "--log-file", log)
        image = f"docker://{proxy.host}/t/a:v1"
        with mounting(image, tmp_path / "m", "--key", images["key"], *options) as mounted:
            assert (mounted / "d" / "small").read_bytes() == Segment(100, 2).plain()
            proxy.faults = [Fault(applies=lambda request: True, times=None, hang_up=True)]
            assert (mounted / "d" / "small").read_bytes() == Segment(100, 2).plain(), "what is here stays"
            assert read_error(mounted / "large", 300 * KIB) == errno.EIO
            assert "cannot be reached" in log.read_text()
            proxy.faults = []
            assert_same_tree(expected(PLAN), read_folder(mounted))
            told = json.loads(rafsfs("stats", mounted, "--json").stdout)["remote"]
            assert told["requests"] >= 2
            assert told["node_cache"]["stored"] >= 3
            assert "node cache" in rafsfs("stats", mounted).stdout
            assert "rafsfs_remote_requests_total" in rafsfs("stats", mounted, "--prometheus").stdout
        with mounting(image, tmp_path / "m", "--key", images["key"], *options) as mounted:
            proxy.requests.clear()
            assert_same_tree(expected(PLAN), read_folder(mounted))
            assert not proxy.ranges, "the second mount fetches no chunk"
    tally("mounts that went on when their registry came back", 1)
