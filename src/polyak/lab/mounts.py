"""What kind of file system a file is on, where the system tells: Linux does."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/mounts")
OF_NETWORKS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
    "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb2", "smb3", "smbfs",
}  # fmt: skip


def network_of(path: Path) -> str | None:
    """The network file system that a file is on, or is to be; None where it is on none or nobody knows."""
    try:
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    place, found = path.resolve(), (Path(), "")
    for line in lines:
        _, folder, name, *_ = line.split(" ")
        mounted = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), folder))
        if place.is_relative_to(mounted) and len(mounted.parts) >= len(found[0].parts):  # a later one hides an earlier
            found = mounted, name
    return found[1] if found[1] in OF_NETWORKS else None


def warning_of(store: Path) -> str | None:
    """What is to be said of a place for a store; None where it is a good one."""
    name = network_of(store)
    if name is None:
        return None
    return f"the store {str(store)!r} is on a network file system ({name}), whose locks may not hold; keep a copy of it"
