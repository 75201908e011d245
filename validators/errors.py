"""Why bytes could not be read as a checkpoint: not yet whole, never whole, or not readable just now."""


class InspectionError(Exception):
    """Base of everything that stops the reading of one file. `permanent` says whether waiting can help."""

    permanent: bool

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Incomplete(InspectionError):
    """Raised when the bytes so far are consistent with a file that is still being written.

    An incomplete file is never called corrupt: it may be whole at the next look.
    """

    permanent = False


class Corrupt(InspectionError):
    """Raised when no further bytes could make the file whole. Carries the code of its finding."""

    permanent = True

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Changed(InspectionError):
    """Raised when the file was modified while it was being read; what was read describes no file at all."""

    permanent = False


class Unreadable(InspectionError):
    """Raised when the operating system refused to open or read the file (permissions, I/O errors)."""

    permanent = False

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno
