"""A pickle without a format around it: what loading it would call. `torch.load` hands it to pickle all the same."""

from .checks.safety import Judgement, is_dangerous, judge
from .formats.torch_zip import Source
from .unpickle import names_behind

MAX_BYTES = 16 << 20
"""So much is looked through for names; what calls something harmful has no need of more."""
_PROTO = b"\x80"
_STARTS = frozenset((_PROTO, b"c", b"(", b"]", b"}", b")", b"N", b"I", b"S", b"V", b"d", b"l"))
"""PROTO, and what the first protocols begin with (pickletools, opcodes)."""


def judge_bare(source: Source, head: bytes) -> Judgement | None:
    """The verdict on a file that has none of our formats.

    Args:
        source: the file.
        head: its first bytes.

    Returns:
        None where it asks for no name, and for a text that only begins as old pickles do.
    """
    if head[:1] not in _STARTS:
        return None
    names = names_behind(source.read(0, min(MAX_BYTES, source.size)))
    if not head.startswith(_PROTO):  # names have no blanks, and lines of a text nearly always
        names = tuple(name for name in names if len(name.split()) == 1 and is_dangerous(name))
    return judge(names, proved=False) if names else None
