"""OCI documents: what we write parses, and whatever a folder's owner writes ends in a value or a refusal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import DigestMismatch, FormatError, LimitExceeded
from rafsfs.format import oci
from rafsfs.limits import OCI_JSON_BYTES_MAX, OCI_LAYERS_MAX

DIGEST = "sha256:" + "ab" * 32
CONFIG = oci.Descriptor(oci.MEDIA_TYPE_CONFIG, DIGEST, 2)
BLOB = oci.Descriptor(oci.MEDIA_TYPE_BLOB, DIGEST, 1000)
BOOTSTRAP = oci.Descriptor(oci.MEDIA_TYPE_BOOTSTRAP, "sha256:" + "cd" * 32, 500)
MANIFEST = oci.Manifest(CONFIG, (BLOB, BLOB), BOOTSTRAP, "sha256:" + "ef" * 32)
FIELDS = MANIFEST.to_json()

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)


def changed(**fields):
    return json.dumps(FIELDS | fields).encode()


def changed_layer(index, **fields):
    layers = [dict(layer) for layer in FIELDS["layers"]]
    layers[index] |= fields
    return changed(layers=layers)


def test_manifest_parses_as_it_was_written():
    assert oci.parse_manifest(oci.dump_json(FIELDS)) == MANIFEST
    only_bootstrap = oci.Manifest(CONFIG, (), BOOTSTRAP, DIGEST)
    assert oci.parse_manifest(oci.dump_json(only_bootstrap.to_json())) == only_bootstrap


def test_documents_are_spelled_one_way():
    assert oci.dump_json({"b": 1, "a": ["ä"]}) == '{"a":["ä"],"b":1}'.encode()


REFUSED = {
    "not JSON": (b"not JSON", "not JSON"),
    "not UTF-8": (b'{"layers": "\xff"}', "not JSON"),
    "a list": (b"[]", "not a JSON object"),
    "deep": (b"[" * 100_000, "not JSON"),
    "long number": (b'{"layers": ' + b"9" * 5000 + b"}", "not JSON"),
    "no layers": (changed(layers=[]), "no layers"),
    "layers in a map": (changed(layers={}), "no layers"),
    "layer as text": (changed(layers=["x"]), "not a descriptor"),
    "another image's layers": (
        changed_layer(-1, mediaType="application/vnd.oci.image.layer.v1.tar+gzip"),
        "not of a rafsfs image",
    ),
    "bootstrap among the blobs": (
        changed_layer(0, mediaType=oci.MEDIA_TYPE_BOOTSTRAP),
        "not of a rafsfs image",
    ),
    "digest of another kind": (changed_layer(0, digest="sha512:" + "ab" * 64), "digest"),
    "digest that leads elsewhere": (changed_layer(0, digest="sha256:../../../etc/passwd"), "digest"),
    "digest with a newline": (changed_layer(0, digest=DIGEST + "\n"), "digest"),
    "digest in capitals": (changed_layer(0, digest=DIGEST.upper()), "digest"),
    "digest as a number": (changed_layer(0, digest=5), "not a descriptor"),
    "negative size": (changed_layer(0, size=-1), "not a descriptor"),
    "size as text": (changed_layer(0, size="5"), "not a descriptor"),
    "size of a float": (changed_layer(0, size=5.0), "not a descriptor"),
    "true size": (changed_layer(0, size=True), "not a descriptor"),
    "annotations in a list": (changed_layer(0, annotations=["x"]), "annotations"),
    "annotation as a number": (changed_layer(0, annotations={"a": 1}), "annotations"),
    "no config": (changed(config=None), "config is not a descriptor"),
    "no superblock digest": (changed(annotations={}), oci.ANNOTATION_SUPERBLOCK),
    "odd superblock digest": (
        changed(annotations={oci.ANNOTATION_SUPERBLOCK: "x"}),
        oci.ANNOTATION_SUPERBLOCK,
    ),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_hostile_manifest_is_refused(data, message):
    with pytest.raises(FormatError, match=message):
        oci.parse_manifest(data)


def test_layers_and_length_are_bounded():
    blob, bootstrap = FIELDS["layers"][0], FIELDS["layers"][-1]
    most = [blob] * (OCI_LAYERS_MAX - 1)
    assert len(oci.parse_manifest(changed(layers=[*most, bootstrap])).blobs) == OCI_LAYERS_MAX - 1
    with pytest.raises(LimitExceeded, match="layers"):
        oci.parse_manifest(changed(layers=[*most, blob, bootstrap]))
    with pytest.raises(LimitExceeded, match="too long"):
        oci.parse_manifest(b" " * (OCI_JSON_BYTES_MAX + 1))


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), json_values))
def test_any_manifest_ends_in_a_value_or_a_refusal(fields):
    with pytest.raises(FormatError):
        oci.parse_manifest(json.dumps(FIELDS | {"layers": None} | fields).encode())


@given(st.binary(max_size=60))
def test_any_bytes_end_in_a_refusal(data):
    with pytest.raises(FormatError):
        oci.parse_manifest(data)


def test_index_lists_descriptors():
    tagged = oci.Descriptor(oci.MEDIA_TYPE_MANIFEST, DIGEST, 5, {oci.ANNOTATION_TAG: "latest"})
    index = oci.dump_json({"schemaVersion": 2, "manifests": [tagged.to_json(), BLOB.to_json()]})
    assert oci.parse_index(index) == [tagged, BLOB]
    assert oci.parse_index(b'{"manifests": []}') == []


@pytest.mark.parametrize("data", [b"{}", b'{"manifests": 5}', b'{"manifests": [5]}', b'{"manifests": null}'])
def test_hostile_index_is_refused(data):
    with pytest.raises(FormatError, match="index"):
        oci.parse_index(data)


def test_digests_are_checked():
    oci.check_digest(b"abc", oci.digest_of(b"abc"), "it")
    assert oci.digest_of(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(DigestMismatch, match="it is not the one that was named"):
        oci.check_digest(b"abd", oci.digest_of(b"abc"), "it")
