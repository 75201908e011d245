"""The walls around a process that parses foreign bytes: no files, no new privileges, a score of system calls.

Two walls, each enough against the file system. *Landlock* is put around the zygote once and inherited: nothing can be
opened, whatever the caller may. *seccomp* is put around each child after the fork: any system call that parsing does
not need ends the child at once by SIGSYS. Everything here uses ctypes because the packages that wrap these calls are
larger than the calls (landlock) or need a C library that is not always there (libseccomp).
"""

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable
from typing import NoReturn

import msgspec

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.syscall.restype = ctypes.c_long

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2  # include/uapi/linux/seccomp.h

# include/uapi/linux/landlock.h; the numbers of the calls are the same on every architecture
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_FS_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 5: 16}  # number of LANDLOCK_ACCESS_FS_* bits known since that ABI
_NET_RIGHTS, _NET_SINCE = 0b11, 4  # bind and connect of TCP
_SCOPES, _SCOPES_SINCE = 0b11, 6  # abstract Unix sockets and signals stay inside the domain

# include/uapi/linux/audit.h: which system call table a number belongs to
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_CALLS: dict[str, tuple[int, int]] = {  # x86-64, aarch64; the most frequent first, a filter is walked in order
    "pread64": (17, 67),
    "preadv2": (327, 286),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "newfstatat": (262, 79),
    "fstat": (5, 80),
    "brk": (12, 214),
    "write": (1, 64),
    "setitimer": (38, 103),
    "madvise": (28, 233),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "read": (0, 63),
    "futex": (202, 98),
    "fadvise64": (221, 223),
    "mincore": (27, 232),
    "fcntl": (72, 25),
    "lseek": (8, 62),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""What a child may do: read what was handed to it, write its answer, manage its own memory, end.

`setitimer` arms the time limit of each job. `preadv2` reads a file through, past the page cache if need be, and
`clock_nanosleep` keeps that within a bandwidth. `fadvise64` and `mincore` are about the cache, `lseek` is for finding
holes, and `fcntl` says how a descriptor was opened (nothing but F_GETFL is let through). `fstat` is there because the
reader proves that a file did not change; glibc 2.33 to 2.38 spell it `newfstatat` with AT_EMPTY_PATH and no other flag
is let through. (That leaves code that took over a child able to learn whether a path exists. It can tell nobody but the
answer.)
"""

_RETURN_ALLOW, _RETURN_KILL_PROCESS = 0x7FFF0000, 0x80000000  # include/uapi/linux/seccomp.h
_AT_EMPTY_PATH = 0x1000

# include/uapi/linux/bpf_common.h
_BPF_LOAD_WORD, _BPF_JUMP_EQUAL, _BPF_JUMP_ANY_BIT, _BPF_RETURN = 0x20, 0x15, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16  # struct seccomp_data; both machines are little-endian


class SandboxError(OSError):
    """Raised when the kernel refuses a wall. `strerror` says which and why."""


class Sandbox(msgspec.Struct, frozen=True):
    """Which walls this machine offers; for each one that it does not, why."""

    no_landlock: str | None = None
    no_seccomp: str | None = None

    @property
    def summary(self) -> str:
        """`full`, `partial: why` or `none: why`."""
        missing = [reason for reason in (self.no_landlock, self.no_seccomp) if reason is not None]
        return {0: "full", 1: "partial: ", 2: "none: "}[len(missing)] + "; ".join(missing)


def probe_sandbox() -> Sandbox:
    """Try each wall in a throw-away child, and see it hold.

    A wall counts only if the child really cannot open a file behind it. The caller must be single-threaded: it forks.
    """
    return Sandbox(
        no_landlock=_why_not("landlock", restrict_files, _end_of_refused_open, _HELD_STATUS),
        no_seccomp=_why_not("seccomp", restrict_calls, _end_of_forbidden_call, -signal.SIGSYS),
    )


def apply_sandbox(sandbox: Sandbox) -> str:
    """Put every wall that `sandbox` says is there around the calling process, for good; returns the summary.

    A zygote gives itself the first wall (`restrict_files`), and each child only the second (`restrict_calls`).

    Raises:
        SandboxError: a wall that the probe found is refused.
    """
    if sandbox.no_landlock is None:
        restrict_files()
    if sandbox.no_seccomp is None:
        restrict_calls()
    return sandbox.summary


def restrict_files() -> None:
    """Deny the calling process and its descendants every access to the file system by name, by Landlock.

    What is open stays usable. Where the kernel can, TCP, abstract Unix sockets and signals to processes outside are
    denied as well.

    Raises:
        SandboxError: the kernel has no Landlock, or refuses it here.
    """
    version = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        raise _refused("landlock")
    rights = max(bits for since, bits in _FS_RIGHTS_BY_ABI.items() if since <= version)
    attributes = struct.pack("=Q", (1 << rights) - 1)
    if version >= _NET_SINCE:
        attributes += struct.pack("=Q", _NET_RIGHTS)
    if version >= _SCOPES_SINCE:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        raise _refused("landlock")
    try:
        no_new_privileges()
        if _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
            raise _refused("landlock")
    finally:
        os.close(ruleset)


def restrict_calls() -> None:
    """Leave the calling process the system calls of `_CALLS`; any other one ends it by SIGSYS.

    Raises:
        SandboxError: the machine is neither x86-64 nor aarch64, or the kernel refuses the filter.
    """
    no_new_privileges()
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(_program()), 0, 0) != 0:
        raise _refused("seccomp")


def no_new_privileges() -> None:
    """Give up gaining rights by executing set-user-id files; both walls ask for it.

    Raises:
        SandboxError: the kernel refuses.
    """
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _refused("no_new_privs")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill the calling process when the *thread* that forked it ends; end now if it already has.

    Args:
        parent: process id of the parent, as it was known before the fork.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def has_filter() -> bool:
    """Whether there is a filter of system calls for this machine."""
    return platform.machine() in _AUDIT_ARCH and sys.byteorder == "little"


def prepare_filter() -> None:
    """Build the filter now, so that a fork inherits it.

    Raises:
        SandboxError: there is none for this machine.
    """
    _program()


# ---- the filter --------------------------------------------------------------------------------------------------


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))
    code: ctypes.Array[ctypes.c_char]


@functools.cache
def _program() -> _Program:
    machine = platform.machine()
    if not has_filter():
        raise SandboxError(errno.ENOSYS, f"seccomp: no filter for {machine}")
    instructions = _filter(_AUDIT_ARCH[machine], 0 if machine == "x86_64" else 1)
    program = _Program()
    program.code = ctypes.create_string_buffer(b"".join(instructions))  # the structure only points at it
    program.length = len(instructions)
    program.instructions = ctypes.addressof(program.code)
    return program


def _filter(arch: int, column: int) -> list[bytes]:
    kill = _instruction(_BPF_RETURN, _RETURN_KILL_PROCESS)
    allow = _instruction(_BPF_RETURN, _RETURN_ALLOW)
    code = [
        _instruction(_BPF_LOAD_WORD, _OFFSET_ARCH),
        _instruction(_BPF_JUMP_EQUAL, arch, 1, 0),
        kill,
        _instruction(_BPF_LOAD_WORD, _OFFSET_NUMBER),
    ]
    for name, numbers in _CALLS.items():
        verdict = [*_argument_test(name), allow]
        code += [_instruction(_BPF_JUMP_EQUAL, numbers[column], 0, len(verdict)), *verdict]
    return [*code, kill]


def _argument_test(name: str) -> list[bytes]:
    """Instructions that kill unless the call's arguments are harmless; the last one falls through to `allow`."""
    kill = _instruction(_BPF_RETURN, _RETURN_KILL_PROCESS)
    if name in ("mmap", "mprotect"):  # no memory becomes executable
        load = _instruction(_BPF_LOAD_WORD, _OFFSET_ARGUMENTS + 8 * 2)
        return [load, _instruction(_BPF_JUMP_ANY_BIT, mmap.PROT_EXEC, 0, 1), kill]
    if name == "fcntl":
        load = _instruction(_BPF_LOAD_WORD, _OFFSET_ARGUMENTS + 8)
        return [load, _instruction(_BPF_JUMP_EQUAL, fcntl.F_GETFL, 1, 0), kill]
    if name == "newfstatat":
        load = _instruction(_BPF_LOAD_WORD, _OFFSET_ARGUMENTS + 8 * 3)
        return [load, _instruction(_BPF_JUMP_EQUAL, _AT_EMPTY_PATH, 1, 0), kill]
    return []


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)  # struct sock_filter


# ---- the probe ---------------------------------------------------------------------------------------------------

_RESTRICTED = b"restricted"
"""Said by the child once a wall is up; anything else that it says is why it is not."""
_REFUSED_STATUS, _HELD_STATUS = 1, 2


def _why_not(name: str, restrict: Callable[[], None], attempt: Callable[[], None], held: int) -> str | None:
    """None if the wall holds, that is, if the attempt behind it ends with exit code `held`; else the reason."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _try(writing, restrict, attempt)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read(1024)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if said == _RESTRICTED:
        return None if code == held else f"{name}: it is there but does not hold (exit code {code})"
    # systemd's SystemCallFilter=, for one, may end who only asks
    return said.decode("utf-8", "replace") or f"{name}: asking for it is forbidden here (exit code {code})"


def _try(writing: int, restrict: Callable[[], None], attempt: Callable[[], None]) -> NoReturn:
    try:
        restrict()
        os.write(writing, _RESTRICTED)
        attempt()
    except SandboxError as error:
        os.write(writing, str(error.strerror).encode())
    finally:
        os._exit(_REFUSED_STATUS)


def _end_of_refused_open() -> None:
    try:
        os.open("/", os.O_RDONLY)
    except PermissionError:
        os._exit(_HELD_STATUS)


def _end_of_forbidden_call() -> None:
    os.open("/", os.O_RDONLY)


def _refused(what: str) -> SandboxError:
    code = ctypes.get_errno()
    return SandboxError(code, f"{what}: {os.strerror(code)}")
