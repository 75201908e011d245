"""What the opcodes of a pickle were applied to, noted by the stand-ins while the pickle is parsed.

Kept beside the stand-ins, one for each thread, because CPython's unpickler calls them without a word of who calls.
"""

import threading

import msgspec


class Tally(msgspec.Struct):
    """What one pickle did, as far as `torch.load(weights_only=True)` cares; see `checks.weights_only`."""

    builds: int = 0
    """BUILD on an object of a type that torch lets it act on."""
    strange: bool = False
    """Something was called or filled that torch refuses to call or fill."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.builds + other.builds, self.strange or other.strange)


class _Local(threading.local):
    def __init__(self) -> None:
        self.tally = Tally()


_local = _Local()


def new_tally() -> Tally:
    """The tally of the pickle that this thread begins to parse."""
    _local.tally = Tally()
    return _local.tally


def note_build() -> None:
    """Note that BUILD was applied to an object that torch lets it act on."""
    _local.tally.builds += 1


def note_strange() -> None:
    """Note that the pickle does what torch refuses, whatever the names are."""
    _local.tally.strange = True
