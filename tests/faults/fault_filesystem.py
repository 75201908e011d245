"""A FUSE filesystem that shows a directory, and fails, hangs or lags where it is told to; needs root and fusepy.

Run as a program it is the filesystem; imported it is what mounts it.
"""

import contextlib
import errno
import fnmatch
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

LOCAL = "bindfs"
"""A subtype that ckptd takes for a local disk, with events."""
NETWORK = "sshfs"
"""One that it takes for a network filesystem, without."""
_ASK_AGAIN_S = 0.01


class FaultyDisk:
    """A mounted `fault_filesystem`."""

    def __init__(self, directory: pathlib.Path, subtype: str) -> None:
        self.path = directory / "disk"
        self.backing = directory / "backing"
        """What it shows; what is changed there is changed without an event, as on another machine."""
        self._rules = directory / "rules.json"
        self._log = directory / "filesystem.log"
        self._subtype = subtype
        self._server: subprocess.Popen[bytes] | None = None
        for each in (self.path, self.backing):
            each.mkdir()
        _put(self._rules, {})

    def mount(self) -> None:
        """Start the process that serves it, and wait until it is mounted."""
        command = [sys.executable, __file__, *map(str, (self.backing, self.path, self._rules)), self._subtype]
        with open(self._log, "wb") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not self.path.is_mount():
            assert self._server.poll() is None, self._log.read_text()
            assert time.monotonic() < end, "the filesystem was not mounted"
            time.sleep(_ASK_AGAIN_S)

    def unmount(self) -> None:
        """Take it away, whatever state it is in."""
        subprocess.run(["/bin/umount", "-f", "-l", str(self.path)], check=False, capture_output=True)
        self.die()

    def die(self) -> None:
        """End the process that serves it: it stays mounted, and whatever is asked of it fails with ENOTCONN."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    @contextlib.contextmanager
    def failing(self, *operations: str, code: int, glob: str = "*") -> Iterator[None]:
        """While inside, these operations on paths like `glob` (which begin with `/`) fail with an errno."""
        with self._ruled({name: {"errno": code, "glob": glob} for name in operations}):
            yield

    @contextlib.contextmanager
    def hanging(self, *operations: str, glob: str = "*") -> Iterator[None]:
        """While inside, these operations do not return."""
        with self._ruled({name: {"hang": True, "glob": glob} for name in operations}):
            yield

    @contextlib.contextmanager
    def lagging(self, *operations: str, delay_s: float) -> Iterator[None]:
        """While inside, each of these operations takes so much longer."""
        with self._ruled({name: {"delay_s": delay_s, "glob": "*"} for name in operations}):
            yield

    @contextlib.contextmanager
    def _ruled(self, rules: dict[str, dict[str, Any]]) -> Iterator[None]:
        _put(self._rules, rules)
        try:
            yield
        finally:
            # Also when a test fails: a process that waits for such a disk cannot even be killed.
            _put(self._rules, {})


@contextlib.contextmanager
def faulty_disk(directory: pathlib.Path, *, subtype: str = LOCAL) -> Iterator[FaultyDisk]:
    """Mount one whose files lie in `directory/backing`, at `directory/disk`.

    Args:
        directory: exists; files of the filesystem's own are put there.
        subtype: by which ckptd tells local disks from network filesystems.
    """
    disk = FaultyDisk(directory, subtype)
    try:
        disk.mount()
        yield disk
    finally:
        disk.unmount()


def _put(path: pathlib.Path, rules: dict[str, dict[str, Any]]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(rules))
    temporary.replace(path)


# ---- the filesystem ----------------------------------------------------------------------------------------------


def _serve(backing: str, mountpoint: str, rules_path: str, subtype: str) -> None:
    import fuse

    class Filesystem(fuse.Operations):
        """Everything of `backing`, and what the rules say on the way."""

        use_ns = True

        def __call__(self, operation: str, path: str, *arguments: Any) -> Any:
            if path is not None:
                self._suffer(operation, path, rules_path)
            try:
                return super().__call__(operation, path, *arguments)
            except OSError as error:
                raise fuse.FuseOSError(error.errno or errno.EIO) from None

        @staticmethod
        def _suffer(operation: str, path: str, rules: str) -> None:
            while True:
                with open(rules, encoding="utf-8") as file:
                    rule = json.load(file).get(operation)
                if rule is None or not fnmatch.fnmatch(path, rule["glob"]):
                    return
                if not rule.get("hang"):
                    break
                time.sleep(_ASK_AGAIN_S)
            time.sleep(rule.get("delay_s", 0))
            if "errno" in rule:
                raise OSError(rule["errno"], "as told")

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            status = os.lstat(backing + path)
            names = ("st_ino", "st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_blocks")
            times = {f"st_{kind}": getattr(status, f"st_{kind}_ns") for kind in ("atime", "mtime", "ctime")}
            return {name: getattr(status, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(backing + path)]

        def readlink(self, path: str) -> str:
            return os.readlink(backing + path)

        def open(self, path: str, flags: int) -> int:
            return os.open(backing + path, flags & ~(os.O_NOFOLLOW | os.O_DIRECTORY))

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(backing + path, os.O_RDWR | os.O_CREAT, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            os.truncate(backing + path, length)

        def fsync(self, path: str, datasync: bool, fh: int) -> int:
            os.fsync(fh)
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def rename(self, old: str, new: str) -> None:
            os.rename(backing + old, backing + new)

        def link(self, target: str, source: str) -> None:
            os.link(backing + source, backing + target)

        def unlink(self, path: str) -> None:
            os.unlink(backing + path)

        def mkdir(self, path: str, mode: int) -> None:
            os.mkdir(backing + path, mode)

        def rmdir(self, path: str) -> None:
            os.rmdir(backing + path)

        def chmod(self, path: str, mode: int) -> int:
            os.chmod(backing + path, mode)
            return 0

        def chown(self, path: str, uid: int, gid: int) -> int:
            os.chown(backing + path, uid, gid)
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            os.utime(backing + path, ns=times)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            status = os.statvfs(backing + path)
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_files", "f_ffree", "f_frsize", "f_namemax")
            return {name: getattr(status, name) for name in names}

    options = {"attr_timeout": 0, "entry_timeout": 0, "direct_io": True, "allow_other": True, "use_ino": True}
    fuse.FUSE(Filesystem(), mountpoint, foreground=True, nothreads=False, subtype=subtype, fsname="faulty", **options)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
