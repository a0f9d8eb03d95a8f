"""Random and bent requests: errors are fine, an exception, a second reply or a wrong length is a bug.

``RAFSFS_EXAMPLES`` sets how long to look; the seed of a failure is in its message.
"""

import os
import random
import struct

from hypothesis import given
from hypothesis import strategies as st
from support import fuse_wire as wire
from support.fuse_memory import small_tree

from rafsfs.errors import FormatError
from rafsfs.fuse.server import FuseServer, Interrupted, Pending, ServerOptions

RUNS = 50 * int(os.environ.get("RAFSFS_EXAMPLES", "100"))
NODES = [*range(13), 2**32, 2**63, 2**64 - 1]
NUMBERS = st.one_of(st.integers(0, 4096), st.integers(0, 2**64 - 1), st.sampled_from([2**31, 2**32, 2**63]))


def serving():
    handler = small_tree()
    handler.faults["entry", 6] = FormatError("a damaged name")
    server = FuseServer(handler, ServerOptions())
    wire.joined(server.handle(wire.init()))
    return server


def answers(server, question):
    """Everything that a transport would send for ``question``."""
    outcome = server.handle(question)
    if isinstance(outcome, Pending):
        outcome = outcome.run()
        assert outcome is not None
    elif isinstance(outcome, Interrupted):
        outcome = outcome.pending.interrupted()
    return [] if outcome is None else [wire.joined(outcome)]


def check(server, question):
    replies = answers(server, question)
    assert len(replies) <= 1
    if len(question) < 40:
        assert replies == []
    for reply in replies:
        (length, _, unique) = struct.unpack_from("<IiQ", reply)
        assert length <= 16 + 2**24
        opcode, asked = struct.unpack_from("<IQ", question, 4)
        assert unique == asked or opcode == wire.INTERRUPT


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(question):
    check(serving(), question)


@given(
    opcode=st.one_of(st.integers(0, 54), st.integers(0, 2**32 - 1)),
    node=st.sampled_from(NODES),
    fields=st.lists(NUMBERS, max_size=8),
    tail=st.one_of(
        st.just(b""),
        st.binary(max_size=20),
        st.sampled_from(
            [b"hello\0", b"dir\0", b"lost\0", b".\0", b"..\0", b"user.color\0", b"n" * 256 + b"\0"]
        ),
    ),
    unit=st.sampled_from(["<I", "<Q"]),
)
def test_any_fields_behind_a_true_header_are_survived(opcode, node, fields, tail, unit):
    mask = 2 ** (8 * struct.calcsize(unit)) - 1
    body = b"".join(struct.pack(unit, field & mask) for field in fields) + tail
    check(serving(), wire.request(opcode, body, node=node))


def questions():
    whole = [
        *(wire.request(wire.LOOKUP, name) for name in (b"hello\0", b"nothing\0", b"lost\0", b"..\0")),
        *(wire.request(wire.GETATTR, bytes(16), node=node) for node in (1, 2, 11)),
        wire.request(wire.READLINK, node=4),
        *(wire.read(node, 0, 4096) for node in (2, 5, 9, 10)),
        *(wire.request(opcode, wire.read_in(0, 4096), node=3) for opcode in (wire.READDIR, wire.READDIRPLUS)),
        wire.request(wire.GETXATTR, struct.pack("<II", 100, 0) + b"user.color\0", node=2),
        wire.request(wire.LISTXATTR, struct.pack("<II", 100, 0), node=2),
        wire.request(wire.LSEEK, struct.pack("<QQII", 0, 100, 3, 0), node=5),
        wire.request(wire.STATFS),
        wire.interrupt(wire.UNIQUE),
        wire.init(),
        wire.request(wire.DESTROY, node=0),
    ]
    return [*whole, *(wire.request(opcode, bytes(24)) for opcode in range(60))]


def bend(chance, question):
    """One to four of: a bit, a byte, a word of an odd number, bytes cut, added or put in."""
    data = bytearray(question)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
            case 1 if place < len(data):
                data[place] = chance.randrange(256)
            case 2:
                width = chance.choice([2, 4, 8])
                number = chance.choice([0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
                data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
            case 3:
                del data[place:]
            case 4:
                data[place:place] = chance.randbytes(chance.randrange(20))
            case _:
                data += chance.randbytes(chance.randrange(20))
    if len(data) >= 4 and chance.random() < 0.7:
        data[:4] = struct.pack("<I", len(data))  # else nearly all would be refused for their length
    return bytes(data)


def test_bent_requests_are_survived_by_a_server_that_lives_on(tally):
    seed = random.randrange(2**32) if RUNS > 50 * 100 else 0
    chance = random.Random(seed)
    server, source = serving(), questions()
    answered = 0
    for run in range(RUNS):
        question = bend(chance, chance.choice(source))
        try:
            check(server, question)
        except BaseException as error:
            error.add_note(f"seed {seed}, run {run}, request {question.hex()}")
            raise
        if server.negotiated is None:
            server.handle(wire.init())
        answered += 1
    assert wire.joined(server.handle(wire.read(2, 0, 4096, unique=6))) == wire.ok(b"hello world\n", unique=6)
    tally("bent FUSE requests survived", answered)
