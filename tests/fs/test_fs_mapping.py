"""Node ids: a bijection that fixes the root at 1 and never gives a number with another meaning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError
from rafsfs.fs.mapping import ROOT_NODE, NodeMap
from rafsfs.types import Nid

nids = st.integers(0, 2**59 - 1).map(Nid)  # 2^64 bytes of metadata in slots of 32


@given(root=nids, nid=nids)
def test_every_inode_has_a_node_of_its_own_and_back(root, nid):
    nodes = NodeMap(root)
    try:
        node = nodes.node(nid)
    except FormatError:
        assert nid in (0, 1)
        assert nid != root
    else:
        assert nodes.nid(node) == nid
        assert (node == ROOT_NODE) == (nid == root)
        assert node != 0


@given(root=nids.filter(lambda nid: nid > 1))
def test_node_ids_are_inode_numbers_for_all_but_the_root(root):
    nodes = NodeMap(root)
    assert nodes.node(root) == ROOT_NODE
    assert nodes.nid(ROOT_NODE) == root
    assert nodes.node(Nid(root + 1)) == root + 1


@pytest.mark.parametrize("nid", [0, 1])
def test_a_hostile_directory_cannot_name_the_root_or_nothing(nid):
    with pytest.raises(FormatError, match=f"expected nid >= 2.*nid {nid}"):
        NodeMap(Nid(36)).node(Nid(nid))
