"""Conversations with a real kernel, recorded: every message it sent still gets the reply that it took.

The programs behind them (ls, cat, stat, md5sum, dd, sync) saw what they should. In the second conversation
the server wanted no zero-message opens, no READDIRPLUS, no ACLs and no ASYNC_DIO. Who asked has been made up.
"""

import json
from pathlib import Path

import pytest
from support import fuse_wire as wire
from support.fuse_memory import small_tree

from rafsfs.fuse.abi import InitFlag
from rafsfs.fuse.server import FuseServer, Interrupted, Pending, ServerOptions

RECORDED = json.loads((Path(__file__).parents[1] / "vectors" / "fuse_linux.json").read_text())


@pytest.mark.parametrize("conversation", RECORDED["conversations"])
def test_recorded_conversation_goes_the_same_way(conversation, tally):
    server = FuseServer(small_tree(), ServerOptions(wanted=InitFlag(conversation["wanted"])))
    waiting = {}
    for request, reply in conversation["messages"]:
        if request is None:  # a read that waited
            outcome = waiting.pop(reply[16:32]).run()
        else:
            outcome = server.handle(bytes.fromhex(request))
        if reply == "pending":
            assert isinstance(outcome, Pending)
            waiting[request[16:32]] = outcome
            continue
        if isinstance(outcome, Interrupted):
            assert waiting.pop(reply[16:32]) is outcome.pending
            outcome = outcome.pending.interrupted()
        assert (None if outcome is None else wire.joined(outcome).hex()) == reply
    assert waiting == {}
    tally("recorded FUSE messages", len(conversation["messages"]))


def test_recording_covers_what_a_mount_is_asked():
    opcodes = {
        bytes.fromhex(request)[4]
        for conversation in RECORDED["conversations"]
        for request, _ in conversation["messages"]
        if request
    }
    assert opcodes >= {
        *(wire.INIT, wire.LOOKUP, wire.FORGET, wire.BATCH_FORGET, wire.GETATTR, wire.READLINK, wire.OPEN),
        *(wire.READ, wire.STATFS, wire.RELEASE, wire.GETXATTR, wire.LISTXATTR, wire.FLUSH, wire.OPENDIR),
        *(
            wire.READDIR,
            wire.READDIRPLUS,
            wire.RELEASEDIR,
            wire.LSEEK,
            wire.INTERRUPT,
            wire.IOCTL,
            wire.STATX,
        ),
    }
