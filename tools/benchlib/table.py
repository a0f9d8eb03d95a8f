"""Medians, ratios and targets as text; measures nothing."""

import statistics

UNITS = {
    "walk": "s", "walk2": "s", "readall": "MB/s", "readall2": "MB/s", "seq": "MB/s", "seq2": "MB/s",
    "rand4k": "us", "rand4k2": "us", "par4": "MB/s", "build": "s", "size": "MB", "mount": "s",
    "mount-cold": "s", "memory-start": "MB", "memory": "MB", "memory-pss": "MB", "idle": "ms/s",
}  # fmt: skip
MEANINGS = {
    "walk": "os.walk and lstat of everything",
    "walk2": "the same again, warm",
    "readall": "every file but the big one, one after the other",
    "readall2": "the same again, warm",
    "seq": "the big file from start to end",
    "seq2": "the same again, warm",
    "rand4k": "a random read of 4 KiB in the big file, mean of 3000",
    "rand4k2": "the same reads again, warm",
    "par4": "the files, shared by 4 processes",
    "build": "the image from the tree, tree in the page cache",
    "size": "all files of the image",
    "mount": "from the mount command to the first byte of a file",
    "mount-cold": "the same with empty page cache: programs and libraries from disk",
    "memory-start": "the server's resident memory when it has mounted",
    "memory": "the same after walk, readall and seq; caches included",
    "memory-pss": "its proportional share, without what others also map",
    "idle": "processor time of a server that nobody asks anything",
}

NOT_COMPARED = frozenset(("memory-start", "memory", "memory-pss", "idle"))
HIGHER_IS_BETTER = frozenset(row for row, unit in UNITS.items() if unit == "MB/s")

TARGETS = {
    "walk": {"squashfuse_ll": 5.0, "gocryptfs": 5.0, "virtiofsd": 1.0},
    "walk2": {"ext4": 0.9, "virtiofsd": 1.0},
    "readall": {"squashfuse_ll": 4.0, "gocryptfs": 3.0, "virtiofsd": 1.0},
    "readall2": {"ext4": 0.9, "virtiofsd": 1.0},
    "seq": {"gocryptfs": 1.5, "virtiofsd": 1.0},
    "seq2": {"ext4": 0.9, "virtiofsd": 1.0},
    "rand4k": {"gocryptfs": 1.0, "virtiofsd": 1.0},
    "par4": {"squashfuse_ll": 2.0, "gocryptfs": 2.0, "virtiofsd": 1.0},
    "build": {"squashfs": 1.0},
    "size": {"squashfs": 1.0},
}
"""What a mount through FUSE, or in a guest, is to reach, as times better than the peer."""

TARGETS_EROFS = {
    "walk": {"squashfs": 1 / 1.5},
    "walk2": {"ext4": 0.9},
    "readall": {"squashfs": 1.5},
    "readall2": {"ext4": 0.9},
    "seq": {"squashfs": 1.2},
    "seq2": {"ext4": 0.9},
    "rand4k": {"squashfs": 1 / 0.6},
    "par4": {"squashfs": 2.0},
}
"""What the kernel's EROFS on top of us is to reach."""

SAME_MAX = 1.25
"""What counts as the same time for few files and for many: a choice, about what runs of a tree differ by."""
SAME_ROWS = ("mount", "mount-cold")

MOUNT_S_MAX = 0.4
MEMORY_MB_MAX = 80.0
"""Beyond the cache budget."""


def medians(values):
    """Return column -> row -> median."""
    return {
        column: {row: statistics.median(numbers) for row, numbers in rows.items()}
        for column, rows in values.columns.items()
    }


def times_better(row, ours, theirs):
    """How many times better ours is; above 1 we are ahead."""
    if not ours or not theirs:
        return None
    return ours / theirs if row in HIGHER_IS_BETTER else theirs / ours


def render(cells):
    """Lay out rows of words: the first column to the left, all others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        words = [row[0].ljust(widths[0])]
        words += [word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(words).rstrip())
    return "\n".join(lines)


def number(value):
    """Three digits that matter."""
    if value is None:
        return "-"
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def values_table(found, title=""):
    """All medians, a row for each measurement and a column for each system."""
    columns = list(found)
    rows = [row for row in UNITS if any(row in found[column] for column in columns)]
    cells = [[title, "", *columns]]
    cells += [[row, UNITS[row], *(number(found[column].get(row)) for column in columns)] for row in rows]
    return render(cells)


def ratio_table(found, ours, peers, targets):
    """How many times better one of ours is than each peer, and where that is less than it should be."""
    rows = [row for row in UNITS if row in found[ours] and any(row in found[peer] for peer in peers)]
    rows = [row for row in rows if row not in NOT_COMPARED]
    cells = [[f"{ours}, times better than", *peers]]
    for row in rows:
        words = [row]
        for peer in peers:
            ratio = times_better(row, found[ours][row], found[peer].get(row))
            target = targets.get(row, {}).get(peer)
            word = number(ratio)
            if ratio is not None and target is not None:
                word += " ok" if ratio >= target else f" (to reach {target:.3g})"
            words.append(word)
        cells.append(words)
    return render(cells)


def limits_table(found, cache_mb):
    """The bounds that are no ratios: mount time, and memory beyond the cache budget."""
    cells = [["bound", "", *found]]
    for row, most, unit in (("mount", MOUNT_S_MAX, "s"), ("memory", MEMORY_MB_MAX + cache_mb, "MB")):
        words = []
        for column in found:
            value = found[column].get(row)
            words.append("-" if value is None else "ok" if value <= most else f"{number(value)}: too much")
        cells.append([f"{row} <= {most:g} {unit}", "", *words])
    return render(cells)


def sameness_table(found, series):
    """How many times longer a mount takes with many files than with few; a series begins with few."""
    rows = [row for row in SAME_ROWS if any(row in found[column] for column in found)]
    cells = [["times that of the first", *(column for columns in series for column in columns[1:])]]
    for row in rows:
        words = [f"{row} <= {SAME_MAX:g}"]
        for few, *others in series:
            for column in others:
                first, value = found[few].get(row), found[column].get(row)
                ratio = value / first if first and value else None
                judged = "" if ratio is None else " ok" if ratio <= SAME_MAX else ": not the same"
                words.append(number(ratio) + judged)
        cells.append(words)
    return render(cells)


def legend(rows):
    """What the rows mean."""
    return "\n".join(f"  {row:13}{MEANINGS[row]}" for row in UNITS if row in rows)
