"""Exit codes of `ckptd`, and the error that carries one."""

FINE = 0
FOUND = 1
"""A finding of severity error, or a difference that was looked for."""
USAGE = 2
ENVIRONMENT = 3
"""No daemon there, port taken, state locked, not permitted."""
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE


class CommandError(Exception):
    """Raised when a command cannot do its job; the message says why and what to do."""

    def __init__(self, message: str, exit_code: int = ENVIRONMENT) -> None:
        super().__init__(message)
        self.exit_code = exit_code
