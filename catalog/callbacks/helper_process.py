"""Helper: the training's side of the process that describes its checkpoints; started when first needed."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from .helper import Outcome, Task, carry_out, receive_outcome, send

_END_S = 5.0

_inherited: list[object] = []
"""Helpers of the process that this one was forked from: they are its children, not ours to wait for."""


class Helper:
    """Carries out one task after the other in a process of its own; in this one where none can be started.

    Used by one thread at a time. Interrupts of the terminal do not reach it: it ends when the training closes it or is
    gone, after the task that it is at.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        """Args:
        command: What to start; by default this Python.
        """
        self._command = command or [sys.executable, "-P", "-m", f"{__package__}.helper"]
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._unstartable = False

    def carry_out(self, task: Task) -> Outcome:
        """Have a task carried out, and wait for it.

        Returns:
            What became of it. Where the process dies over it (killed for its memory, say), that is the outcome: what
            kills another process is not tried in the training's.
        """
        if self._process is None and not self._unstartable:
            self._unstartable = not self._start()
        if self._process is None:
            return carry_out(task)
        try:
            return self._ask(self._process, task)
        except (OSError, EOFError, ValueError, msgspec.DecodeError):
            code = self._reap()
            why = f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"
            return Outcome(
                kind="helper", message=f"no metadata was written for {task.path}: the process that describes it {why}"
            )

    def close(self) -> None:
        """End the process, if there is one, once it has done what it was given. A later task starts another one."""
        process, self._process = self._process, None
        if process is None:
            return
        if os.getpid() != self._owner:
            _inherited.append(process)
            return
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.close()
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            _inherited.append(process)  # at a hung disk; it ends by itself
        except OSError:
            process.wait()
        process.stdout.close()

    def __del__(self) -> None:
        # Nobody closed it, and nobody waits for its answer. Whoever runs the garbage collector must not wait, either:
        # what it writes is put in place in one step, so that to end it at once leaves nothing behind.
        if sys.is_finalizing():
            return
        if os.getpid() == self._owner:
            self._reap()
        else:
            self.close()

    def _start(self) -> bool:
        """Whether a process was started that is ready for tasks."""
        try:
            # Its own session: Ctrl-C is for the training. Only pipes are inherited.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
            assert self._process.stdout is not None
            return receive_outcome(self._process.stdout) == Outcome()
        except (OSError, EOFError, ValueError, msgspec.DecodeError):
            self._reap()
            return False

    def _ask(self, process: "subprocess.Popen[bytes]", task: Task) -> Outcome:
        assert process.stdin is not None
        assert process.stdout is not None
        send(process.stdin, task)
        return receive_outcome(process.stdout)

    def _reap(self) -> int:
        """The exit code of a process that no longer answers."""
        process, self._process = self._process, None
        if process is None:
            return 127
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not flushed has no reader
                    stream.close()
        return process.wait()
