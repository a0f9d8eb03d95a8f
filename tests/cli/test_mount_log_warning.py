"""A mount whose log lines would reach nobody says so when it is made, and only then."""

import socket
from pathlib import Path

import pytest

from rafsfs.cli.mount import NO_LOG, MountRequest, warn_of_no_log
from rafsfs.cli.options import ImageAccess
from rafsfs.frontends import logs

CASES = {
    "no syslog": (False, {}, f"{NO_LOG}\n"),
    "syslog": (True, {}, ""),
    "in the foreground": (False, {"foreground": True}, ""),
    "a log file": (False, {"log_file": Path("log")}, ""),
}


@pytest.mark.parametrize(("has_syslog", "options", "said"), CASES.values(), ids=CASES)
def test_warning(has_syslog, options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if has_syslog:
            receiver.bind("syslog")
        monkeypatch.setattr(logs, "SYSLOG_SOCKET", tmp_path / "syslog")
        warn_of_no_log(MountRequest("img", Path("m"), ImageAccess(), **options))
    assert capsys.readouterr() == ("", said)
