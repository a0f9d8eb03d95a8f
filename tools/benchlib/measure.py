"""Runs the measurements: fresh mounts, interleaved repeats, every value kept; prints nothing but progress."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchlib import load, machine
from benchlib.machine import BenchError
from benchlib.systems import MOUNT_PREFIX
from benchlib.trees import Tree, many_files

PASS_LIMIT_S = 900
IDLE_S = 3.0
MEMORY_PASSES = ("walk", "readall", "seq")
LOAD_ROWS = tuple(row for rows in load.PASSES.values() for row in rows)
OTHER_ROWS = ("build", "size", "mount", "mount-cold", "memory", "idle", "many")
ROWS = (*LOAD_ROWS, *OTHER_ROWS)


class Values:
    """Column -> row -> all values that were measured, in their order."""

    def __init__(self, columns=()):
        self.columns = {column: {} for column in columns}

    def add(self, column, row, value):
        self.columns.setdefault(column, {}).setdefault(row, []).append(value)


class Bench:
    """Measures ``systems``, all over one tree; the first of ``ours`` builds the image of all of them."""

    def __init__(self, tree, systems, ours, work, repeat, tell):
        self.tree = tree
        self.systems = systems
        self.ours = ours
        self.work = Path(work)
        self.repeat = repeat
        self.tell = tell
        self.values = Values(system.name for system in systems)
        self.many = Values()
        self.many_series = {}  # system -> its columns there, few files first
        self._names = self.work / "names"

    def prepare(self):
        """Make all images; each mount point is empty afterwards."""
        self.tree.write_names(self._names)
        for system in self.systems:
            self.tell(f"preparing {system.name}")
            system.prepare()

    def unmount_all(self):
        """Take down whatever is still mounted below the work folder, and remove the mount points."""
        for directory in reversed(machine.mount_points()):
            if Path(directory).is_relative_to(self.work.resolve()):
                machine.unmount(directory)
        for path in self.work.glob(f"{MOUNT_PREFIX}*"):
            path.rmdir()

    def run(self, rows):
        """Measure the rows, whatever their order."""
        passes = [name for name, of_pass in load.PASSES.items() if set(of_pass) & set(rows)]
        if "build" in rows:
            self._builds()
        for number in range(self.repeat):
            for name in passes:
                for system in self.systems:
                    self.tell(f"{name} {number + 1}/{self.repeat} {system.name}")
                    for row, value in self._on_fresh_mount(system, name).items():
                        self.values.add(system.name, row, value)
        for system in self.systems:
            if "size" in rows:
                self.values.add(system.name, "size", system.stored_bytes() / 1e6)
            if {"mount", "mount-cold"} & set(rows) and system.directory != self.tree.path:
                self._mounts(system, self.values)
            if {"memory", "idle"} & set(rows) and system.is_server:
                self._memory(system, self.values, MEMORY_PASSES)

    def _on_fresh_mount(self, system, name):
        system.mount()
        try:
            machine.drop_caches()
            return self._pass(system, name, self._names)
        finally:
            system.unmount()

    def _pass(self, system, name, names):
        command = [sys.executable, load.__file__, name, system.directory, names, system.tree.big]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PASS_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{system.name}: {name} took more than {PASS_LIMIT_S} s") from None
        if done.returncode:
            raise BenchError(f"{system.name}: {name} failed\n{done.stderr[-2000:]}")
        return json.loads(done.stdout)

    def _builds(self):
        """Time our builder and mksquashfs in turns, the tree in the page cache."""
        builders = [*self.ours[:1], *(system for system in self.systems if system.name == "squashfs")]
        for number in range(self.repeat):
            for system in builders:
                self.tell(f"build {number + 1}/{self.repeat} {system.name}")
                machine.warm(self.tree.path)
                os.sync()
                self.values.add(system.name, "build", _seconds(system.build))

    def _mounts(self, system, values, column=None):
        """Time from the start of the mount command to the first byte of a file."""
        first = os.path.join(system.directory, system.tree.first)
        for row in ("mount", "mount-cold"):
            for _ in range(self.repeat):
                self.tell(f"{row} {column or system.name}")
                if row == "mount-cold":
                    machine.drop_caches()
                try:
                    values.add(column or system.name, row, _seconds(_mount_and_read, system, first))
                finally:
                    system.unmount()

    def _memory(self, system, values, passes, column=None):
        """Memory of the server after a load, and the processor time that it takes when nobody asks."""
        names = self.work / f"names-{column}" if column else self._names
        self.tell(f"memory {column or system.name}")
        system.mount()
        try:
            pid = machine.server_of(system.directory)
            if pid is None:
                raise BenchError(f"{system.name}: the server of {system.directory} cannot be found")
            values.add(column or system.name, "memory-start", machine.memory_of(pid)[0])
            for name in passes:
                self._pass(system, name, names)
            values.add(column or system.name, "memory", machine.memory_of(pid)[0])
            values.add(column or system.name, "memory-pss", machine.memory_of(pid)[1])
            before = machine.processor_seconds_of(pid)
            time.sleep(IDLE_S)
            idle_ms = (machine.processor_seconds_of(pid) - before) / IDLE_S * 1e3
            values.add(column or system.name, "idle", idle_ms)
        finally:
            system.unmount()

    def run_many(self, counts):
        """Mount time and memory of our servers for few files and for many."""
        for count in counts:
            column = f"{count:,} files"
            self.tell(f"preparing {column}")
            folder = self.work / f"tree-{count}"
            many_files(folder, count)
            tree = Tree(folder)
            for system in self.ours:
                twin = system.twin(f"{system.name}-{count}", tree)
                label = column if system is self.ours[0] else f"{column}, {system.name}"
                self.many_series.setdefault(system.name, []).append(label)
                tree.write_names(self.work / f"names-{label}")
                machine.warm(tree.path)
                self.many.add(label, "build", _seconds(twin.prepare))
                self.many.add(label, "size", twin.stored_bytes() / 1e6)
                self._mounts(twin, self.many, label)
                self._memory(twin, self.many, ("walk",), label)


def _seconds(work, *arguments):
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def _mount_and_read(system, path):
    system.mount()
    with open(path, "rb", buffering=0) as file:
        file.read(1)
