"""What loading with `weights_only=False` could do: an allowlist proof; for the rest, names known to be bad.

The verdict `safe` rests on the allowlist alone. The list of dangerous names only sorts what is not allowed into
"certainly do not" and "nobody knows": a list of bad names can never prove anything.
"""

from collections.abc import Callable, Iterable

import msgspec

from ..dtypes import DTYPES, STORAGE_DTYPES
from ..findings import Finding, finding
from ..inspection import Inspection, Safety
from ..plain import clip
from .weights_only import TORCH_ALLOWED

MAX_NAMED = 100
"""Names reported of one file."""
MAX_IMPORTS = 200
"""Imports reported of one file; a real one has 4 to 40."""


def _names(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


ALLOWED: frozenset[str] = frozenset(
    # what torch itself admits under weights_only=True, its other names for the same, and what those files hold besides
    TORCH_ALLOWED
    | {f"torch.{name}" for name in DTYPES}
    | {f"torch.cuda.{name}" for name in STORAGE_DTYPES}
    | _names("torch", "UntypedStorage Generator _C.Generator cuda.sparse.BoolTensor sparse.BoolTensor")
    | _names("torch._dynamo.decorators", "_DimRange")
    # plain containers and numbers: constructors that call nothing but each other
    | _names("collections", "defaultdict deque")
    | _names("builtins", "frozenset list tuple dict int float str bool bytes slice range object")
    | _names("copyreg", "_reconstructor")
    | _names("argparse", "Namespace")
    | _names("types", "SimpleNamespace")
    | _names("datetime", "date datetime time timedelta timezone")
    | _names("decimal", "Decimal")
    | _names("fractions", "Fraction")
    | _names("uuid", "UUID")
    | _names("pathlib", "Path PosixPath PurePath PurePosixPath WindowsPath PureWindowsPath")
    | _names("pathlib._local", "Path PosixPath PurePath PurePosixPath WindowsPath PureWindowsPath")
    | _names("numpy", "dtype ndarray")
    | _names("numpy.core.multiarray", "scalar _reconstruct")
    | _names("numpy._core.multiarray", "scalar _reconstruct")
    | _names("numpy.core.numeric", "_frombuffer")
    | _names("numpy._core.numeric", "_frombuffer")
)

_DANGEROUS_MODULES = _words(
    "os posix nt posixpath ntpath subprocess _posixsubprocess sys socket _socket ssl shutil importlib imp runpy "
    "pty ctypes _ctypes cffi pickle _pickle cPickle dill cloudpickle joblib marshal shelve code codeop webbrowser "
    "io _io tempfile operator _operator functools _functools types inspect multiprocessing _multiprocessing "
    "threading _thread asyncio concurrent signal _signal atexit gc pdb bdb cProfile profile trace timeit doctest "
    "platform getpass commands popen2 http httplib urllib urllib2 requests aiohttp httpx ftplib smtplib telnetlib "
    "poplib imaplib nntplib xmlrpc glob fileinput linecache tokenize pkgutil pydoc pip setuptools distutils "
    "ensurepip venv zipimport zipfile tarfile sqlite3 mmap fcntl resource numpy.testing numpy.f2py torch.hub "
    "torch.jit torch.package torch.utils.cpp_extension torch.utils.model_zoo torch.utils.bottleneck "
    "torch.utils.collect_env torch.multiprocessing torch.distributed.rpc torch._inductor torch._dynamo torch.fx"
)
"""A name in one of these, or in what lies below them, counts as dangerous unless it is allowed."""

_DANGEROUS_NAMES = _words(
    "torch.load torch.save torch.storage._load_from_bytes torch.serialization.load torch._C torch.classes "
    "torch.ops torch.compile numpy.load numpy.save numpy.fromfile numpy.memmap numpy.loadtxt pandas.read_pickle "
    "hydra.utils.instantiate hydra.utils.call hydra._internal.instantiate "
    "lightning.pytorch.cli.instantiate_module pytorch_lightning.cli.instantiate_module copyreg.add_extension "
    "logging.config"
) | _names(
    "builtins",
    "eval exec compile open getattr setattr delattr hasattr __import__ globals locals vars dir input breakpoint "
    "raw_input apply execfile file reload map filter reduce iter next type super staticmethod classmethod property "
    "memoryview exit quit help print",
)


class Judgement(msgspec.Struct, frozen=True):
    """What the names in all pickles of a file, and the way they are used, say about loading it."""

    safety: Safety
    unsafe_globals: tuple[str, ...]
    """Names outside the allowlist, worst first."""
    imports: tuple[str, ...]
    """See `Inspection.imports`."""
    weights_only: bool | None
    """See `Inspection.weights_only`."""
    findings: list[Finding]

    def of(self, inspection: Inspection) -> Inspection:
        """`inspection` with the verdict; its findings are left as they are."""
        return msgspec.structs.replace(
            inspection,
            safety=self.safety,
            unsafe_globals=self.unsafe_globals,
            imports=self.imports,
            weights_only=self.weights_only,
        )


def judge(
    names: Iterable[str],
    proved: bool,
    accepted: Callable[[], bool | None] | bool | None = None,
    unread: Iterable[str] = (),
) -> Judgement:
    """The verdict on all names that the pickles of one file asked for.

    Args:
        names: `module.name`, as Python 3 knows them, in order of appearance.
        proved: the pickles were parsed to their end and nothing follows them; otherwise nothing is ever called safe.
        accepted: whether `torch.load(weights_only=True)` takes what is not names (`weights_only.accepts`); False where
            it refuses the whole format, None where nobody can say. Called only if the names leave it open.
        unread: names in parts of the file that torch.load does not look at; others may.
    """
    distinct = list(dict.fromkeys(names))
    outside = [name for name in dict.fromkeys((*distinct, *unread)) if name not in ALLOWED]
    dangerous = [name for name in outside if is_dangerous(name)]
    unknown = [name for name in outside if name not in set(dangerous)]
    findings: list[Finding] = []
    if dangerous:
        findings.append(finding("pickle.dangerous_name", f"loading the pickle would call {_listed(dangerous)}"))
    if unknown:
        findings.append(finding("pickle.unknown_name", f"the pickle builds objects of {_listed(unknown)}"))
    verdict = Safety.SAFE if proved and not unknown else Safety.UNKNOWN
    return Judgement(
        safety=Safety.UNSAFE if dangerous else verdict,
        unsafe_globals=tuple(map(_spelled, [*dangerous, *unknown][:MAX_NAMED])),
        imports=tuple(map(_spelled, [name for name in distinct if name not in _NOT_IMPORTED][:MAX_IMPORTS])),
        weights_only=_weights_only(distinct, accepted),
        findings=findings,
    )


_NOT_IMPORTED = frozenset(f"torch.{place}{name}" for name in STORAGE_DTYPES for place in ("", "cuda.", "storage."))
"""torch/serialization.py, `UnpicklerWrapper.find_class`: storage classes are only names of element types."""


def _weights_only(names: list[str], accepted: Callable[[], bool | None] | bool | None) -> bool | None:
    if not TORCH_ALLOWED.issuperset(names):
        return False
    return accepted() if callable(accepted) else accepted


def is_dangerous(name: str) -> bool:
    """Whether a name outside the allowlist is known to run code or to reach the system.

    Also where the danger lies inside the name: pickle resolves `torch` + `serialization.os.system` by attributes.
    """
    parts = name.split(".")
    prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    if prefixes & (_DANGEROUS_MODULES | _DANGEROUS_NAMES):
        return True
    return bool(_SMUGGLED & set(parts[1:]))


_SMUGGLED = _words(
    "os posix subprocess sys socket shutil importlib runpy pty ctypes pickle builtins __builtins__ __import__ "
    "eval exec __globals__ __subclasses__ __reduce__ __getattribute__ __class__ __dict__ system popen"
)
"""Parts that no class of a model has in its path after the first: the way to a dangerous module by attributes."""


def _spelled(name: str) -> str:
    """A name for people: letters that are no ASCII are written out, as a Cyrillic letter o looks like a Latin one."""
    return clip(name) if name.isascii() else clip(clip(name).encode("ascii", "backslashreplace").decode())


def _listed(names: list[str]) -> str:
    shown = ", ".join(clip(_spelled(name), 80) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
