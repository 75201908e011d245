"""Stepping back: processor and disk are taken only as far as nobody else wants them."""

import contextlib
import ctypes
import os
import platform

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
# include/uapi/linux/ioprio.h
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_IDLE, _IOPRIO_CLASS_SHIFT = 1, 3, 13
_LEAST_NICE = 19


def step_back() -> None:
    """Give the calling process the lowest priority of processor and disk; its children inherit both.

    The idle class of I/O counts where the disk's scheduler knows classes (BFQ, mq-deadline). Where the kernel refuses,
    everything stays as it is.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _LEAST_NICE)
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE << _IOPRIO_CLASS_SHIFT)
