"""Observing the saves of a Lightning strategy: each file when it is there, whoever had it written and however.

`Trainer.save_checkpoint`, ModelCheckpoint, exceptions and signals all end in `strategy.save_checkpoint`, deletions in
`strategy.remove_checkpoint`; these are replaced on the instance. A wrapping CheckpointIO (`AsyncCheckpointIO`) returns
before the file is there: then the innermost CheckpointIO says when it is.
"""

import os
import re
import threading
from typing import Any, Protocol

from .guarded import Guard

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*::?//|[A-Za-z0-9+.\-]+::")


class Token(Protocol):
    """What an observer noted of one save."""

    @property
    def path(self) -> str:
        """As `local_path` gives it."""
        ...


class SaveObserver(Protocol):
    """Who is told of saves. What it raises reaches nobody but the log."""

    guard: Guard

    def saving(self, checkpoint: dict[str, Any], filepath: Any) -> "Token | None":
        """Called on the training thread right before the file is written; None where this save is not observed."""
        ...

    def saved(self, token: Any) -> None:
        """The file is there; called from the thread that wrote it."""
        ...

    def removed(self, filepath: Any) -> None:
        """The file was deleted, called on the training thread."""
        ...

    def ended(self) -> None:
        """No more files are under way: the strategy, and with it its CheckpointIO, was torn down."""
        ...


def observe_saves(strategy: Any, observer: SaveObserver) -> None:
    """Tell an observer of every checkpoint that a strategy saves or removes from now on, once however often called."""
    if any(hook.observer is observer for hook in _hooks(strategy, "save_checkpoint")):
        return
    under_way = _UnderWay()
    strategy.save_checkpoint = _Save(strategy.save_checkpoint, observer, under_way, strategy)
    strategy.remove_checkpoint = _Remove(strategy.remove_checkpoint, observer)
    strategy.teardown = _Teardown(strategy.teardown, observer)


def local_path(path: Any) -> str | None:
    """A path of Lightning's as an absolute one on this machine; None for remote filesystems (`s3://…`)."""
    text = os.fsdecode(os.fspath(path))
    text = text.removeprefix("file://")
    return None if _REMOTE.match(text) else os.path.abspath(os.path.expanduser(text))


class _UnderWay:
    """Saves that were handed to a CheckpointIO which writes them later, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: list[Token] = []

    def add(self, token: Token) -> None:
        with self._lock:
            self._tokens.append(token)

    def take(self, path: str | None) -> Token | None:
        """The oldest one of a path."""
        with self._lock:
            token = next((token for token in self._tokens if token.path == path), None)
            self._tokens = [other for other in self._tokens if other is not token]
            return token

    def drop(self, token: Token) -> None:
        with self._lock:
            self._tokens = [other for other in self._tokens if other is not token]

    def __reduce__(self) -> tuple[type["_UnderWay"], tuple[()]]:
        return _UnderWay, ()  # another process has its own saves


class _Hook:
    """Stands on an instance in the place of one of its methods. Can be pickled and copied with it."""

    def __init__(self, inner: Any, observer: SaveObserver) -> None:
        self.inner = inner
        self.observer = observer


class _Save(_Hook):
    def __init__(self, inner: Any, observer: SaveObserver, under_way: _UnderWay, strategy: Any) -> None:
        super().__init__(inner, observer)
        self.under_way = under_way
        self.strategy = strategy

    def __call__(self, checkpoint: dict[str, Any], filepath: Any, *args: Any, **kwargs: Any) -> Any:
        token = self.observer.guard(self.observer.saving, checkpoint, filepath)
        if token is None:
            return self.inner(checkpoint, filepath, *args, **kwargs)
        later = self.observer.guard(_observe_io, self.strategy, self.observer, self.under_way)
        if later is None:
            answer = self.inner(checkpoint, filepath, *args, **kwargs)
        else:
            self.under_way.add(token)
            later.handed = False
            try:
                answer = self.inner(checkpoint, filepath, *args, **kwargs)
            except BaseException:
                self.under_way.drop(token)
                raise
            if later.handed:
                return answer
            self.under_way.drop(token)  # the strategy wrote it by itself
        self.observer.guard(self.observer.saved, token)
        return answer


class _Remove(_Hook):
    def __call__(self, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        answer = self.inner(filepath, *args, **kwargs)
        self.observer.guard(self.observer.removed, filepath)
        return answer


class _Teardown(_Hook):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.inner(*args, **kwargs)
        finally:
            self.observer.guard(self.observer.ended)


class _Outer(_Hook):
    """On the CheckpointIO that the strategy calls: notes that a save was handed to it."""

    handed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.handed = True
        return self.inner(*args, **kwargs)


class _Innermost(_Hook):
    """On the CheckpointIO that writes: when it returns, the file is there."""

    def __init__(self, inner: Any, observer: SaveObserver, under_way: _UnderWay) -> None:
        super().__init__(inner, observer)
        self.under_way = under_way

    def __call__(self, checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        local = self.observer.guard(local_path, path)
        try:
            answer = self.inner(checkpoint, path, *args, **kwargs)
        except BaseException:
            self.under_way.take(local)
            raise
        token = self.under_way.take(local)
        if token is not None:
            self.observer.guard(self.observer.saved, token)
        return answer


def _observe_io(strategy: Any, observer: SaveObserver, under_way: _UnderWay) -> _Outer | None:
    """Hook a chain of wrapping CheckpointIOs; None where the strategy's own writes at once.

    Asked at each save: the chain is completed, and can be exchanged, after the callbacks' `setup`.
    """
    outermost = strategy.checkpoint_io
    innermost = outermost
    while getattr(innermost, "checkpoint_io", None) is not None:
        innermost = innermost.checkpoint_io
    if innermost is outermost:
        return None
    if not any(hook.observer is observer for hook in _hooks(innermost, "save_checkpoint")):
        innermost.save_checkpoint = _Innermost(innermost.save_checkpoint, observer, under_way)
    for hook in _hooks(outermost, "save_checkpoint"):
        if hook.observer is observer and isinstance(hook, _Outer):
            return hook
    outer = _Outer(outermost.save_checkpoint, observer)
    outermost.save_checkpoint = outer
    return outer


def _hooks(instance: Any, name: str) -> list[_Hook]:
    """The hooks in the place of a method, outermost first: several callbacks may observe one strategy."""
    found = []
    hook = vars(instance).get(name)
    while isinstance(hook, _Hook):
        found.append(hook)
        hook = hook.inner
    return found
