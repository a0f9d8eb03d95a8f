"""Log lines: one each, to the right place, whatever they hold."""

import json
import logging
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import MacMismatch, MountError, Where
from rafsfs.frontends import logs


@given(st.text())
def test_a_line_stays_a_line_and_speaks_to_no_terminal(text):
    line = logs.one_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1
    if text.isprintable():
        assert line == text


def test_escapes_say_what_was_there():
    assert logs.one_line("a\nb\x1b[31m\udcff") == r"a\nb\x1b[31m\udcff"


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield root
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], root.level, logging.raiseExceptions = handlers, level, raising
    root.setLevel(level)


def test_file_gets_whole_lines_at_once_even_of_tracebacks_and_names_that_are_no_text(tmp_path, root_logger):
    file = tmp_path / "log"
    file.write_text("earlier\n")
    handler, descriptor = logs.to_file(file)
    assert os.path.samestat(os.fstat(descriptor), file.stat())
    logs.use(handler, "INFO")
    log = logging.getLogger("rafsfs.mount")
    log.debug("not shown")
    log.warning("name %s", os.fsdecode(b"\xff\n\xe2\x82\xac"))
    log.error("trouble", exc_info=ValueError("two\nlines"))
    earlier, first, second = file.read_text().splitlines()
    handler.stream.close()
    assert earlier == "earlier"
    assert first.endswith(f"rafsfs[{os.getpid()}] WARNING name \\udcff\\n€")
    assert "trouble" in second
    assert "two\\nlines" in second


def test_a_file_that_cannot_be_opened_is_a_mount_error(tmp_path):
    with pytest.raises(MountError, match=r"log file cannot be opened: No such file.*nowhere/log"):
        logs.to_file(tmp_path / "nowhere" / "log")


def test_syslog_where_there_is_one(tmp_path, monkeypatch, root_logger):
    path = tmp_path / "log.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(30)
        monkeypatch.setattr(logs, "SYSLOG_SOCKET", path)
        logs.use(logs.to_system(), "INFO")
        logging.getLogger("rafsfs.mount").error("a\nb")
        assert receiver.recv(4096) == b"<27>rafsfs[%d]: a\\nb\0" % os.getpid()  # daemon.err


def test_json_for_syslog_says_first_who_it_is(tmp_path, monkeypatch, root_logger):
    path = tmp_path / "log.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(30)
        monkeypatch.setattr(logs, "SYSLOG_SOCKET", path)
        logs.use(logs.to_system(as_json=True), "INFO")
        logging.getLogger("rafsfs.mount").error("50 %")
        tag, _, text = receiver.recv(4096).rstrip(b"\0").partition(b" ")
    assert tag == b"<27>rafsfs[%d]:" % os.getpid()
    assert json.loads(text)["message"] == "50 %"


def test_without_syslog_lines_go_nowhere(tmp_path, monkeypatch, root_logger, capfd):
    monkeypatch.setattr(logs, "SYSLOG_SOCKET", tmp_path / "none")
    logs.use(logs.to_system(), "INFO")
    logging.getLogger("rafsfs.mount").error("lost")
    assert capfd.readouterr() == ("", "")


def test_json_lines_are_objects_with_the_error_taken_apart(tmp_path, root_logger):
    handler, _ = logs.to_file(tmp_path / "log", as_json=True)
    logs.use(handler, "INFO")
    log = logging.getLogger("rafsfs.mount")
    where = Where(blob="sha256:ab", chunk=3, offset=4096)
    damage = MacMismatch("it was changed", expected=1, hint="look", where=where)
    log.error("%s; met in %s", damage, os.fsdecode(b"/odd\xff\n\x1b"))
    log.warning("trouble", exc_info=ValueError("two\nlines"))
    text = (tmp_path / "log").read_text()
    handler.stream.close()
    assert all(line.isprintable() and line.isascii() for line in text.splitlines())
    first, second = map(json.loads, text.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "error",
        "logger": "rafsfs.mount",
        "pid": os.getpid(),
        "message": f"{damage}; met in /odd\udcff\n\x1b",
        "error": {
            "type": "MacMismatch",
            "what": "it was changed",
            "expected": "1",
            "hint": "look",
            "blob": "sha256:ab",
            "chunk": 3,
            "offset": 4096,
        },
    }
    assert (second["level"], second["message"]) == ("warning", "trouble")
    assert "two\nlines" in second["traceback"]
    assert "error" not in second


@given(st.text())
def test_json_keeps_any_text(text):
    record = logging.LogRecord("rafsfs", logging.INFO, "", 0, "%s", (text,), None)
    line = logs.JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == text
