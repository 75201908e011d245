"""A link leads us no further than it leads its owner.

Whoever runs ckptd often may read more than those who write into its roots, and what is read ends in sidecars beside
their checkpoints. Without this, a link to another user's private config would bring its values there.
"""

import os
import stat

_READ, _ENTER = stat.S_IROTH, stat.S_IXOTH


def leads_its_owner(root_fd: int, relative_path: bytes, opened: int) -> bool:
    """Whether the owner of the first link of a path may read what it led to, by permission bits alone.

    That one counts because what is read ends beside it; its group is one that its owner is in, or was given by the
    directory. Access control lists are not asked: where one alone lets the owner in, the answer is no.

    Args:
        root_fd: the open root.
        relative_path: beneath the root, with a link in it.
        opened: descriptor of what the path led to, beneath the root.
    """
    link = _first_link(root_fd, relative_path)
    if link is None:
        return False  # exchanged meanwhile: whose it was nobody can say
    target = os.fstat(opened)
    if link.st_uid in (0, target.st_uid):
        return True
    return _may(link, target, _READ) and _may_enter_all(link, root_fd, opened)


def _first_link(root_fd: int, relative_path: bytes) -> os.stat_result | None:
    parts = relative_path.split(b"/")
    for end in range(1, len(parts) + 1):
        try:
            status = os.stat(b"/".join(parts[:end]), dir_fd=root_fd, follow_symlinks=False)
        except OSError:
            return None
        if stat.S_ISLNK(status.st_mode):
            return status
    return None


def _may_enter_all(link: os.stat_result, root_fd: int, opened: int) -> bool:
    """Whether the owner of a link may pass every directory between the root and what was opened."""
    try:
        root, path = (os.fsencode(os.readlink(f"/proc/self/fd/{fd}")) for fd in (root_fd, opened))
        if not path.startswith(root.rstrip(b"/") + b"/"):
            return False
        directories = path[len(root.rstrip(b"/")) + 1 :].split(b"/")[:-1]
        ways = (b"/".join(directories[: end + 1]) for end in range(len(directories)))
        return all(_may(link, os.stat(way, dir_fd=root_fd, follow_symlinks=False), _ENTER) for way in ways)
    except OSError:
        return False


def _may(link: os.stat_result, status: os.stat_result, others_bit: int) -> bool:
    if status.st_uid == link.st_uid:
        return status.st_mode & (others_bit << 6) != 0
    if status.st_gid == link.st_gid:
        return status.st_mode & (others_bit << 3) != 0
    return status.st_mode & others_bit != 0
