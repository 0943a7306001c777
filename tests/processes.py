"What tests ask about processes, on Linux."

from pathlib import Path


def children(pid):
    "The processes that a process has started, and those that they have started."
    found = []
    for entry in Path('/proc').glob('[0-9]*/stat'):
        try:
            parent = int(entry.read_text().rpartition(')')[2].split()[1])
        except OSError:
            continue
        if parent == pid: found += [int(entry.parent.name), *children(int(entry.parent.name))]
    return found


def lives(pid):
    "Whether a process still runs; one that nobody has asked about its end does not."
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False
