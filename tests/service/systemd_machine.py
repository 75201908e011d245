"""A machine whose first process is a real systemd: namespaces on an overlay of this machine's files, gone afterwards.

Needs root with all its rights, and systemd and dbus installed. Nothing that is written inside survives, and nothing
outside can be reached but what is bound into it.
"""

import contextlib
import ctypes
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from typing import Self

from tests.service.daemons import eventually

BOOT_DEADLINE_S = 180.0
SYSTEMD = "/lib/systemd/systemd"
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
_UNSHARE = ("unshare", "--fork", "--kill-child", *_NAMESPACES)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_TARGET = "tested.target"
# What a namespace cannot do, or what only costs time there.
_MASKED = (
    "systemd-udevd.service",
    "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket",
    "systemd-udev-trigger.service",
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "systemd-update-utmp.service",
    "systemd-hwdb-update.service",
    "systemd-random-seed.service",
    "systemd-pstore.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "kmod-static-nodes.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-done.service",
    "ldconfig.service",
    "systemd-firstboot.service",
    "systemd-machine-id-commit.service",
    "systemd-boot-system-token.service",
    "networking.service",
    "apparmor.service",
)

_BOOT = """
    state=$1; controllers=$2; shift 2
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 tmpfs "$state"; cd "$state"; mkdir upper work root
    mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root; R=$PWD/root
    mount -t proc proc "$R/proc"; mount --bind "$R/proc/sys" "$R/proc/sys"; mount -o remount,ro,bind "$R/proc/sys"
    mount -t sysfs -o ro sysfs "$R/sys"
    if [ "$controllers" = v2 ]; then mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"; else
      mount -t tmpfs -o mode=755 tmpfs "$R/sys/fs/cgroup"; cd "$R/sys/fs/cgroup"; mkdir systemd memory pids
      mount -t cgroup -o none,name=systemd cgroup systemd
      mount -t cgroup -o memory cgroup memory; mount -t cgroup -o pids cgroup pids
    fi
    mount -t tmpfs -o mode=755 tmpfs "$R/run"; mount -t tmpfs -o mode=755 tmpfs "$R/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
    for device in null zero full random urandom tty fuse; do
      [ -e /dev/$device ] || continue; : > "$R/dev/$device"; mount --bind /dev/$device "$R/dev/$device"
    done
    mkdir "$R/dev/pts" "$R/dev/shm"; mount -t devpts -o newinstance,ptmxmode=0666 devpts "$R/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$R/dev/shm"; ln -s pts/ptmx "$R/dev/ptmx"; ln -s /proc/self/fd "$R/dev/fd"
    for directory; do mkdir -p "$R$directory"; mount --bind "$directory" "$R$directory"; done
    for closed in home data srv; do mkdir -p "$R/$closed"; mount -t tmpfs -o mode=755 tmpfs "$R/$closed"; done
    cd "$R"; mkdir .old; pivot_root . .old; umount -l /.old; rmdir /.old
    mount --make-rshared /  # as systemd does where it is not in a container: mounts reach the services
    @UNITS@
    exec env -i container=test PATH=$PATH /lib/systemd/systemd --system --unit=tested.target \\
      --log-target=journal --show-status=no
"""


class CannotBoot(Exception):
    """Raised when this machine lacks what it takes; the message says what."""


class Machine:
    """One booted system. A context manager: it is powered off at the end."""

    def __init__(self, directory: pathlib.Path, shared: Sequence[pathlib.Path] = ()) -> None:
        """Args:
        directory: for its root while it runs, and its console's log.
        shared: directories that lie at the same place inside, and stay.
        """
        self._directory = directory
        self._shared = [str(path) for path in shared]
        self._cgroups: list[pathlib.Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        self.limits_memory = False
        """Whether MemoryMax= means anything there."""

    def __enter__(self) -> Self:
        try:
            self._boot()
            eventually(self._is_up, "systemd has booted", deadline_s=BOOT_DEADLINE_S, every_s=0.05)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.run("systemctl", "--force", "--force", "poweroff", check=False, timeout_s=30)
        self._end()

    # ---- using it --------------------------------------------------------------------------------------------

    @property
    def root(self) -> pathlib.Path:
        """Its file system, seen from here."""
        return pathlib.Path(f"/proc/{self._init}/root")

    def path(self, inside: str | os.PathLike[str]) -> pathlib.Path:
        """Where a path of its own lies, seen from here. Do not follow absolute links with it."""
        return self.root / os.fspath(inside).lstrip("/")

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 120, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        variables = [f"{name}={value}" for name, value in ({"PATH": _PATH, "HOME": "/root"} | (env or {})).items()]
        done = subprocess.run(
            ["nsenter", "--target", str(self._init), *_NAMESPACES, "env", "-i", *variables, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            cwd="/",
        )
        said = f"{shlex.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        assert not check or done.returncode == 0, said
        return done

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """What systemctl says."""
        return self.run("systemctl", *arguments, check=check).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit)

    def journal(self, unit: str) -> str:
        """Everything that a unit has logged, and systemd about it."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit).stdout

    def drop_in(self, unit: str, name: str, text: str) -> None:
        """Change a unit; `text` empty takes the change back."""
        directory = self.path(f"/etc/systemd/system/{unit}.d")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.conf").write_text(text)
        self.systemctl("daemon-reload")

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """The calling thread is in its network; sockets that are made meanwhile stay there."""
        libc = ctypes.CDLL(None, use_errno=True)
        own, its = (os.open(f"/proc/{pid}/ns/net", os.O_RDONLY) for pid in ("thread-self", self._init))
        try:
            assert libc.setns(its, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            yield
        finally:
            assert libc.setns(own, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            os.close(own)
            os.close(its)

    # ---- booting ---------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        if os.geteuid() != 0:
            raise CannotBoot("it needs root")
        for program in (SYSTEMD, "/usr/bin/dbus-daemon", "/usr/bin/nsenter", "/usr/bin/unshare"):
            if not os.path.exists(program):
                raise CannotBoot(f"there is no {program}: apt-get install systemd dbus util-linux")
        mountpoint = self._directory / "machine"
        mountpoint.mkdir()
        kind = self._own_cgroups()
        console = self._directory / "console.log"
        script = "set -eu\n" + _BOOT.replace("@UNITS@", _prepared_units())
        with open(console, "wb") as log:
            self._process = subprocess.Popen(
                [*_UNSHARE, "bash", "-c", script, "boot", str(mountpoint), kind, *self._shared],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._enter_cgroups,
            )

    def _own_cgroups(self) -> str:
        """Make a cgroup of its own in each hierarchy; returns which kind the machine is to use."""
        name = f"ckptd-test-{uuid.uuid4().hex[:8]}"
        kind, places = cgroup_places()
        for place in places:
            (place / name).mkdir()
            self._cgroups.append(place / name)
        self.limits_memory = kind == "v1" or _delegates_memory(places[0], places[0] / name)
        return kind

    def _enter_cgroups(self) -> None:
        for cgroup in self._cgroups:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise CannotBoot(f"it ended with {self._process.returncode}: {self._console()}")
        if not self._init:
            children = pathlib.Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if not children or pathlib.Path(f"/proc/{children[0]}/comm").read_text().strip() != "systemd":
                return False
            self._init = int(children[0])
        return self.run("systemctl", "is-active", _TARGET, check=False).stdout.strip() == "active"

    def _console(self) -> str:
        return (self._directory / "console.log").read_text(errors="replace")[-2000:]

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)  # --kill-child: its first process goes with it
            self._process.wait()
        for cgroup in reversed(self._cgroups):
            eventually(lambda cgroup=cgroup: _remove_cgroups(cgroup), f"{cgroup} is empty")  # type: ignore[misc]
        self._cgroups.clear()
        shutil.rmtree(self._directory / "machine", ignore_errors=True)


def cgroup_places() -> tuple[str, list[pathlib.Path]]:
    """Where this process may make cgroups: `v2` and one place, or `v1` and one for each hierarchy with limits."""
    own = {
        line.split(":")[1]: line.split(":")[2]
        for line in pathlib.Path("/proc/self/cgroup").read_text().split("\n")
        if line
    }
    mounts = [line.split() for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    unified = [pathlib.Path(fields[4]) for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    if not unified:
        raise CannotBoot("no cgroup2 file system is mounted")
    first = [unified[0] / own.get("", "/").lstrip("/")]
    names = {"name=systemd": "systemd", "memory": "memory", "pids": "pids"}
    v1 = [unified[0].parent / directory / own[name].lstrip("/") for name, directory in names.items() if name in own]
    if len(v1) == len(names) and all((place / "cgroup.procs").exists() for place in v1):
        return "v1", [*first, *v1]
    return "v2", first


def _delegates_memory(parent: pathlib.Path, own: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):
        (parent / "cgroup.subtree_control").write_text("+memory +pids")
    return "memory" in (own / "cgroup.controllers").read_text().split()


def _remove_cgroups(top: pathlib.Path) -> bool:
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not top.exists()


def _prepared_units() -> str:
    """Lines of shell: nothing that this machine starts is started there."""
    target = "[Unit]\\nRequires=dbus.socket systemd-journald.service\\nAfter=dbus.socket systemd-journald.service\\n"
    return f"""
    cd /etc/systemd/system; rm -rf *.wants *.requires ckptd*
    for unit in {" ".join(_MASKED)}; do ln -sf /dev/null "$unit"; done
    printf "{target}" > {_TARGET}
    : > /etc/fstab; tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id
    rm -rf /var/lib/ckptd* /etc/ckptd /opt/ckptd
    mkdir -p /var/log/journal
    cd /
    """
