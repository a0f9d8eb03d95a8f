"""The config.json of an OCI runtime bundle (runtime-spec v1.0), made of an image's config; starts nothing.

Mounts, capabilities and masked paths are those that Docker and Podman give to a container by default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rafsfs.errors import MountError
from rafsfs.format.image_config import PATH_DEFAULT, ImageConfig
from rafsfs.frontends.container_user import ContainerUser

SPEC_VERSION: Final = "1.0.2"
ROOTFS: Final = "rootfs"
NETWORKS: Final = ("none", "host")

_CAPABILITIES: Final = [
    f"CAP_{name}"
    for name in (
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
        *("NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
]
_MASKED: Final = [
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware"),
    *("/sys/devices/virtual/powercap",),
]
_READ_ONLY: Final = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_OF_THE_HOSTS_NETWORK: Final = ("/etc/resolv.conf", "/etc/hosts")


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """What a caller wants otherwise than the image; None and empty: as the image says.

    ``command`` replaces the image's ``Cmd``, not its ``Entrypoint``. ``network`` is one of ``NETWORKS``: none
    is a network of its own, in which there is nothing but its loopback device.
    """

    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str | None = None
    user: str | None = None
    hostname: str = "rafsfs"
    network: str = "none"
    terminal: bool = False


def runtime_spec(
    config: ImageConfig, user: ContainerUser, options: ContainerOptions, *, annotations: Mapping[str, str]
) -> dict[str, Any]:
    """The whole of config.json. Raises MountError when nobody said what to run."""
    return {
        "ociVersion": SPEC_VERSION,
        "process": _process(config, user, options),
        "root": {"path": ROOTFS, "readonly": False},
        "hostname": options.hostname,
        "mounts": _mounts(options.network),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": _namespaces(options.network),
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
        },
        "annotations": dict(annotations),
    }


def _process(config: ImageConfig, user: ContainerUser, options: ContainerOptions) -> dict[str, Any]:
    arguments = [*config.entrypoint, *(options.command or config.cmd)]
    if not arguments or not arguments[0]:
        raise MountError(
            "neither the image nor you said what to run", hint="name the command behind the image"
        )
    working_dir = options.working_dir or config.working_dir or "/"
    if not working_dir.startswith("/"):
        raise MountError("the working directory is not an absolute path", found=repr(working_dir))
    # The kernel takes what is effective from everybody but root; what is bounding is what sudo may get back.
    held = _CAPABILITIES if user.uid == 0 else []
    return {
        "terminal": options.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": arguments,
        "env": _environment(config.env, user, options),
        "cwd": working_dir,
        "capabilities": {"bounding": _CAPABILITIES, "effective": held, "permitted": held},
        "noNewPrivileges": False,
    }


def _environment(image: Sequence[str], user: ContainerUser, options: ContainerOptions) -> list[str]:
    """The image's variables, the caller's over them, and what programs expect under both."""
    merged = {"PATH": PATH_DEFAULT, "HOME": user.home, "HOSTNAME": options.hostname}
    if options.terminal:
        merged["TERM"] = os.environ.get("TERM", "xterm")
    for variable in image:
        name, _, value = variable.partition("=")
        merged[name] = value
    merged |= dict(options.env)
    return [f"{name}={value}" for name, value in merged.items() if name]


def _mounts(network: str) -> list[dict[str, Any]]:
    mounts = [
        _mount("/proc", "proc", "nosuid,noexec,nodev"),
        _mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        _mount("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k", "shm"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
        # A new sysfs belongs to a network namespace of one's own.
        _mount("/sys", "none", "rbind,nosuid,noexec,nodev,ro", "/sys")
        if network == "host"
        else _mount("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
        _mount("/sys/fs/cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
    ]
    if network == "host":
        mounts += [
            _mount(path, "none", "bind,nosuid,noexec,nodev,ro", path)
            for path in _OF_THE_HOSTS_NETWORK
            if Path(path).exists()
        ]
    return mounts


def _mount(destination: str, kind: str, options: str, source: str | None = None) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": kind,
        "source": source or kind,
        "options": options.split(","),
    }


def _namespaces(network: str) -> list[dict[str, str]]:
    kinds = ["pid", "ipc", "uts", "mount", "cgroup"]
    return [{"type": kind} for kind in (*kinds, *(["network"] if network == "none" else []))]
