"""What every reader makes of many files, each read in a child process with limits of memory and time.

`python -m tests.faults.loading JOBS ANSWERS` imports torch once and forks: a file that kills its child costs only that.
"""

import enum
import hashlib
import json
import os
import pathlib
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

MEMORY_BYTES = 1 << 30
"""More than any intact file needs by far."""
TIME_S = 10
REPO = pathlib.Path(__file__).parents[2]


class Reader(enum.StrEnum):
    """Who looks at a file."""

    LOAD = "load"
    """The subject's own loader: what decides whether a fault matters."""
    STRUCTURE = "ckptd structure"
    CHECKSUM = "ckptd checksum"
    TORCH = "torch.load"
    TORCH_MMAP = "torch.load(mmap=True)"
    TORCH_UNSAFE = "torch.load(weights_only=False)"
    TESTZIP = "zipfile.testzip"
    PICKLESCAN = "picklescan"


class Job(NamedTuple):
    """One reader, one checkpoint."""

    reader: Reader
    loader: str
    """Of the subject; see `Subject.loader`."""
    path: str


class Answer(NamedTuple):
    """What the reader made of it."""

    complained: bool
    """It raised, reported a problem, or died."""
    what: str
    """The values that were loaded, as a digest; or the complaint."""
    died: bool = False
    """The process did not survive it."""
    time_ms: float = 0.0
    codes: tuple[str, ...] = ()
    """Of ckptd's findings of severity error."""
    digest: str | None = None
    """Of the whole file, by ckptd."""
    level: str = ""
    """How far ckptd verified it."""


def read_all(jobs: Sequence[Job], work: pathlib.Path) -> list[Answer]:
    """Run all jobs in a process of their own, and in its children; `work` is a directory for what passes between."""
    asked, answered = work / "jobs.json", work / "answers.jsonl"
    asked.write_text(json.dumps(jobs))
    subprocess.run(
        [sys.executable, "-m", "tests.faults.loading", str(asked), str(answered)],
        cwd=REPO,
        check=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    answers = [Answer(*json.loads(line)) for line in answered.read_text().splitlines()]
    assert len(answers) == len(jobs)
    return [answer._replace(codes=tuple(answer.codes)) for answer in answers]


# ---- the process that forks ------------------------------------------------------------------------------------------


def main(asked: str, answered: str) -> None:
    """Do the jobs of one file, one line of the other for each."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    jobs = [Job(Reader(reader), loader, path) for reader, loader, path in json.loads(pathlib.Path(asked).read_text())]
    _import_readers({job.reader for job in jobs}, {job.loader for job in jobs})
    with open(answered, "wb", buffering=0) as out:
        begin = 0
        while begin < len(jobs):
            done, how = _in_child(jobs[begin:], out.fileno())
            begin += done
            if begin < len(jobs):
                out.write(_line(Answer(complained=True, what=f"the process died: {how}", died=True)))
                begin += 1


def _import_readers(readers: Iterable[Reader], loaders: Iterable[str]) -> None:
    """Before the fork: importing takes longer than reading."""
    import zipfile  # noqa: F401

    import safetensors.torch  # noqa: F401

    import ckptd.validators  # noqa: F401

    if Reader.PICKLESCAN in readers:
        import picklescan.scanner  # noqa: F401
    if "dcp" in loaders:
        import torch.distributed.checkpoint  # noqa: F401


def _in_child(jobs: Sequence[Job], out: int) -> tuple[int, str]:
    """Do jobs in a child until it dies or is done; how many it did, and how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            _limit()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not what pytest-timeout made of it
            for job in jobs:
                signal.setitimer(signal.ITIMER_REAL, TIME_S)  # SIGALRM ends the process
                os.write(out, _line(answer(job)))
                os.write(writing, b".")
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    done = 0
    while data := os.read(reading, 65536):
        done += len(data)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return done, signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _limit() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C++ libraries tell of their end


def _line(given: Answer) -> bytes:
    return json.dumps(given).encode() + b"\n"


# ---- readers ---------------------------------------------------------------------------------------------------------


def answer(job: Job) -> Answer:
    """What one reader makes of one checkpoint."""
    began = time.perf_counter()
    try:
        complained, what, more = _READERS[job.reader](job)
    except BaseException as error:  # torch.distributed.checkpoint's errors are no Exceptions
        complained, what, more = True, f"{type(error).__name__}: {error}"[:300], {}
    time_ms = (time.perf_counter() - began) * 1e3
    return Answer(complained, what.encode("utf-8", "backslashreplace").decode(), time_ms=time_ms, **more)


Outcome = tuple[bool, str, dict[str, Any]]


def _load(job: Job) -> Outcome:
    return False, digest_of(load(job.loader, job.path)), {}


def load(loader: str, path: str) -> Any:
    """Load a checkpoint as its users do."""
    import safetensors
    import safetensors.torch
    import torch

    if loader == "torch":
        return torch.load(path, weights_only=True)
    if loader == "torch_unsafe":
        return torch.load(path, weights_only=False)
    if loader == "jit":
        return torch.jit.load(path)
    if loader == "safetensors":
        with safetensors.safe_open(path, framework="pt") as file:
            return {"tensors": {name: file.get_tensor(name) for name in file.keys()}, "metadata": file.metadata()}  # noqa: SIM118
    if loader == "dcp":
        return _load_dcp(path)
    return {name: _load_part(os.path.join(path, name)) for name in _parts(path)}


def _load_dcp(path: str) -> Any:
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    loaded = {"dcp": _load_state_dict_from_keys(checkpoint_id=path)}
    meta = os.path.join(path, "meta.pt")
    return loaded | {"meta": load("torch", meta)} if os.path.exists(meta) else loaded


def _parts(path: str) -> list[str]:
    """The files that whoever resumes from the directory reads; those that an index names must be there."""
    names = set(os.listdir(path))
    for index in [name for name in names if name.endswith(".index.json")]:
        names |= set(_load_part(os.path.join(path, index))["weight_map"].values())
    return sorted(names)


def _load_part(path: str) -> Any:
    if path.endswith(".json"):
        return json.loads(pathlib.Path(path).read_bytes())
    return load("safetensors" if path.endswith(".safetensors") else "torch", path)


def _ckptd(level: str) -> Callable[[Job], Outcome]:
    def read(job: Job) -> Outcome:
        from ckptd.validators import Level, inspect_checkpoint

        inspection = inspect_checkpoint(job.path, Level(level))
        codes = [found.code for found in inspection.findings if found.severity == "error"]
        more = {"codes": codes, "digest": inspection.digest, "level": str(inspection.level)}
        return not inspection.is_valid, inspection.error_message or "", more

    return read


def _torch(**options: Any) -> Callable[[Job], Outcome]:
    def read(job: Job) -> Outcome:
        import torch

        torch.load(job.path, **options)
        return False, "", {}

    return read


def _testzip(job: Job) -> Outcome:
    import zipfile

    with zipfile.ZipFile(job.path) as archive:
        bad = archive.testzip()
    return bad is not None, bad or "", {}


def _picklescan(job: Job) -> Outcome:
    from picklescan.scanner import scan_file_path

    result = scan_file_path(job.path)
    return bool(result.scan_err or result.infected_files), str(result.issues_count), {}


_READERS: dict[Reader, Callable[[Job], Outcome]] = {
    Reader.LOAD: _load,
    Reader.STRUCTURE: _ckptd("structure"),
    Reader.CHECKSUM: _ckptd("checksum"),
    Reader.TORCH: _torch(weights_only=True),
    Reader.TORCH_MMAP: _torch(weights_only=True, mmap=True),
    Reader.TORCH_UNSAFE: _torch(weights_only=False),
    Reader.TESTZIP: _testzip,
    Reader.PICKLESCAN: _picklescan,
}


# ---- what was loaded -------------------------------------------------------------------------------------------------


def digest_of(value: Any) -> str:
    """Equal digests mean equal values, bit by bit: types, shapes, strides, contents, order of keys."""
    digest = hashlib.sha256()
    for piece in _pieces(value, 0):
        digest.update(struct.pack("<Q", len(piece)))
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any, depth: int) -> Iterator[bytes]:
    import torch

    yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if depth > 200:
        yield b"too deep"
    elif isinstance(value, torch.Tensor):
        yield repr((value.dtype, tuple(value.shape), value.layout, value.requires_grad, str(value.device))).encode()
        if value.layout is not torch.strided:
            yield from _pieces((value.indices(), value.values()), depth + 1)
            return
        yield repr((value.stride(), value.is_conj(), value.is_neg())).encode()
        plain = value.detach().resolve_conj().resolve_neg().contiguous()
        yield bytes(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else b""
    elif isinstance(value, torch.jit.ScriptModule):
        yield from _pieces(dict(value.state_dict()), depth + 1)
        for name, module in value.named_modules():
            code, constants = module.code_with_constants if hasattr(module, "forward") else ("", None)
            # Names that would be there twice in this process are told apart by a number.
            plain = re.sub(r"___torch_mangle_\d+", "", code)
            yield from _pieces((name, plain, dict(constants.const_mapping) if constants else {}), depth + 1)
    elif isinstance(value, torch.nn.Module):
        yield repr(value).encode("utf-8", "backslashreplace")
        yield from _pieces((dict(value.state_dict()), value.training), depth + 1)
    elif isinstance(value, dict):
        for item in value.items():
            yield from _pieces(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        yield str(len(value)).encode()
        for item in value:
            yield from _pieces(item, depth + 1)
    elif isinstance(value, float):
        yield struct.pack("<d", value)
    elif isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif value is None or isinstance(value, bool | int | str | torch.dtype | torch.Size):
        yield repr(value).encode("utf-8", "backslashreplace")
    else:
        yield pickle.dumps(value)


if __name__ == "__main__":
    main(*sys.argv[1:])
