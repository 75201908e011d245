"""The sandbox holds where the kernel offers it, and says what is missing where it does not."""

import ctypes
import fcntl
import mmap
import pathlib
import signal
import struct
import subprocess
import sys

import pytest

from ckptd.daemon import sandbox
from ckptd.daemon.sandbox import Sandbox

KILL, ALLOW = 0x80000000, 0x7FFF0000
X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def test_the_summary_is_one_word_and_the_reasons() -> None:
    assert Sandbox().summary == "full"
    assert Sandbox(no_landlock="landlock: why").summary == "partial: landlock: why"
    assert Sandbox(no_seccomp="seccomp: why").summary == "partial: seccomp: why"
    assert Sandbox("landlock: a", "seccomp: b").summary == "none: landlock: a; seccomp: b"


def _in_python(code: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter: a sandbox is for good, and these tests live on."""
    return subprocess.run(
        [sys.executable, "-I", "-c", code, *arguments],
        capture_output=True, text=True, timeout=50, check=False, pass_fds=pass_fds,
    )  # fmt: skip


def _available() -> Sandbox:
    done = _in_python(
        "from ckptd.daemon.sandbox import *; s = probe_sandbox(); print(s.no_landlock); print(s.no_seccomp)"
    )
    landlock, seccomp = (None if line == "None" else line for line in done.stdout.splitlines())
    return Sandbox(landlock, seccomp)


def test_probing_leaves_the_prober_free(tmp_path: pathlib.Path) -> None:
    code = "from ckptd.daemon.sandbox import *; probe_sandbox(); import sys; print(open(sys.argv[1]).read())"
    (tmp_path / "file").write_text("readable")
    assert _in_python(code, str(tmp_path / "file")).stdout == "readable\n"


@pytest.mark.parametrize(
    ("restrict", "attempt", "why"),
    [
        ("lambda: None", "lambda: os._exit(7)", "None"),
        ("lambda: None", "lambda: os._exit(0)", "wall: it is there but does not hold (exit code 0)"),
        (
            "lambda: os.kill(os.getpid(), 31)",
            "lambda: os._exit(7)",
            "wall: asking for it is forbidden here (exit code -31)",
        ),
        ("lambda: os._exit(7)", "lambda: os._exit(7)", "wall: asking for it is forbidden here (exit code 7)"),
    ],
)
def test_a_wall_counts_only_if_it_was_put_up_and_held(restrict: str, attempt: str, why: str) -> None:
    code = f"import os; from ckptd.daemon import sandbox; print(sandbox._why_not('wall', {restrict}, {attempt}, 7))"
    assert _in_python(code).stdout == why + "\n"


def test_landlock_refuses_names_and_leaves_what_is_open(tmp_path: pathlib.Path) -> None:
    if (why := _available().no_landlock) is not None:
        pytest.skip(why)
    (tmp_path / "file").write_text("opened before")
    code = """
import os, sys, socket
from ckptd.daemon import sandbox
path = sys.argv[1]
opened = os.open(path, os.O_RDONLY)
inet = socket.socket()
sandbox.restrict_files()
print(os.pread(opened, 100, 0).decode())
for attempt in (lambda: os.open(path, os.O_RDONLY), lambda: os.open(path + "x", os.O_CREAT | os.O_WRONLY),
                lambda: os.unlink(path), lambda: os.listdir("/"), lambda: os.execv("/bin/true", ["true"])):
    try:
        attempt()
        print("let through")
    except OSError as error:
        print(type(error).__name__)
"""
    assert _in_python(code, str(tmp_path / "file")).stdout.split("\n") == [
        "opened before",
        *["PermissionError"] * 5,
        "",
    ]


@pytest.mark.parametrize("landlock", [True, False])
def test_a_restricted_process_may_read_compute_write_and_end(tmp_path: pathlib.Path, landlock: bool) -> None:
    walls = _available()
    if walls.no_seccomp is not None:
        pytest.skip(walls.no_seccomp)
    (tmp_path / "file").write_bytes(b"x" * 5_000_000)
    code = f"""
import os, signal, sys, time, zlib
from ckptd.daemon.sandbox import *
opened = os.open(sys.argv[1], os.O_RDONLY)
print(apply_sandbox(Sandbox(no_landlock={"None" if landlock else "'left out'"})), flush=True)
signal.setitimer(signal.ITIMER_REAL, 60)
before = os.fstat(opened).st_size
data = os.pread(opened, before, 0)
pieces = [bytearray(data) for _ in range(20)]
crc = zlib.crc32(data)
numbers = sorted(range(300_000), key=lambda n: -n)
try:
    bytes(1 << 62)
except MemoryError:
    pass
os.write(1, f"{{before}} {{time.monotonic() > 0}}".encode())
os._exit(0)
"""
    done = _in_python(code, str(tmp_path / "file"))
    assert done.stdout == ("full" if landlock else "partial: left out") + "\n5000000 True"
    assert done.returncode == 0


def test_a_forbidden_call_ends_the_process_by_sigsys() -> None:
    if (why := _available().no_seccomp) is not None:
        pytest.skip(why)
    done = _in_python("import os; from ckptd.daemon import sandbox; sandbox.restrict_calls(); os.getppid()")
    assert done.returncode == -signal.SIGSYS


def test_a_child_of_a_dead_parent_ends_at_once() -> None:
    """Between fork and prctl the parent may die; the kernel then sends nothing."""
    done = _in_python("from ckptd.daemon import sandbox; sandbox.die_with_parent(1); print('alive')")
    assert (done.stdout, done.returncode) == ("", 0)


def test_a_refused_wall_says_which_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def prctl(self, *_: object) -> int:
            ctypes.set_errno(1)
            return -1

        syscall = prctl

    monkeypatch.setattr(sandbox, "_libc", Refusing())
    for restrict, what in ((sandbox.restrict_files, "landlock"), (sandbox.restrict_calls, "no_new_privs")):
        with pytest.raises(sandbox.SandboxError, match=f"{what}: Operation not permitted"):
            restrict()


# ---- the filter, run here for both machines ------------------------------------------------------------------------


def _verdict(program: list[bytes], arch: int, number: int, *arguments: int) -> int:
    """A classic BPF machine, as far as the filter uses it (Documentation/networking/filter.rst)."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, arch, 0, *padded)
    accumulator = position = 0
    while True:
        code, if_true, if_false, operand = struct.unpack("<HBBI", program[position])
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x45:
                position += if_true if accumulator & operand else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(code)


@pytest.mark.parametrize(("arch", "column"), [(X86_64, 0), (AARCH64, 1)])
def test_the_filter_allows_its_list_and_nothing_else(arch: int, column: int) -> None:
    program = sandbox._filter(arch, column)
    allowed = {numbers[column] for numbers in sandbox._CALLS.values()}
    at_empty_path = (0, fcntl.F_GETFL, 0, 0x1000)
    assert {n for n in range(1024) if _verdict(program, arch, n, *at_empty_path) == ALLOW} == allowed
    for number in allowed:
        assert _verdict(program, arch ^ 1, number, *at_empty_path) == KILL, "another machine's table"
        assert _verdict(program, arch, number | 0x40000000, *at_empty_path) == KILL, "the x32 table"


@pytest.mark.parametrize(("arch", "column"), [(X86_64, 0), (AARCH64, 1)])
def test_arguments_are_judged_where_a_call_could_do_harm(arch: int, column: int) -> None:
    program = sandbox._filter(arch, column)
    for name in ("mmap", "mprotect"):
        number = sandbox._CALLS[name][column]
        assert _verdict(program, arch, number, 0, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == ALLOW
        assert _verdict(program, arch, number, 0, 4096, mmap.PROT_READ | mmap.PROT_EXEC) == KILL
    status = sandbox._CALLS["fcntl"][column]
    assert _verdict(program, arch, status, 3, fcntl.F_GETFL) == ALLOW
    for command in (fcntl.F_SETFL, fcntl.F_DUPFD, fcntl.F_SETLEASE, fcntl.F_GETFL | 1 << 10):
        assert _verdict(program, arch, status, 3, command) == KILL
    newfstatat = sandbox._CALLS["newfstatat"][column]
    assert _verdict(program, arch, newfstatat, 0, 0, 0, 0x1000) == ALLOW
    assert _verdict(program, arch, newfstatat, 0, 0, 0, 0) == KILL
    assert _verdict(program, arch, newfstatat, 0, 0, 0, 0x1100) == KILL
