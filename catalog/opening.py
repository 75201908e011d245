"""Opening everything that a description needs: the checkpoint, its sidecars and its config, beneath a root.

Whoever opens needs rights; whoever parses (`describe_opened`) needs only the descriptors.
"""

import contextlib
import os

from ckptd.validators.inspection import FileIdentity
from ckptd.validators.reader import identity_of

from .description import DescribeRequest, OpenedFiles
from .entry import Identities
from .experiment import Companions
from .roots import open_beneath


def open_checkpoint(
    root_fd: int, relative_path: bytes, companions: Companions
) -> tuple[DescribeRequest, OpenedFiles, Identities]:
    """Open one checkpoint with its companions.

    A sidecar or config that cannot be opened (it vanished, is a FIFO, or a link out of the root) counts as absent.

    Args:
        root_fd: the open root (O_PATH will do).
        relative_path: of the checkpoint, beneath the root; also its path for people until the caller replaces
            `checkpoint_path`.
        companions: what was found around it.

    Returns:
        The request, the descriptors (the caller closes them) and the identities of what was opened.

    Raises:
        OSError: the checkpoint itself cannot be opened. Nothing is left open.
    """
    with contextlib.ExitStack() as undo:
        checkpoint = open_beneath(root_fd, relative_path)
        undo.callback(os.close, checkpoint)
        sidecars: list[tuple[bytes, int]] = []
        for name in companions.sidecars:
            fd = _open_companion(root_fd, name)
            if fd is not None:
                undo.callback(os.close, fd)
                sidecars.append((name, fd))
        config = None if companions.config is None else _open_companion(root_fd, companions.config)
        if config is not None:
            undo.callback(os.close, config)
        request = DescribeRequest(
            checkpoint_path=os.fsdecode(relative_path),
            relative_path=relative_path,
            sidecar_names=tuple(name for name, _ in sidecars),
            config_name=companions.config if config is not None else None,
            run_failed=companions.run_failed,
        )
        files = OpenedFiles(checkpoint=checkpoint, sidecars=tuple(fd for _, fd in sidecars), config=config)
        identities = identities_of(files, run_failed=companions.run_failed)
        undo.pop_all()
        return request, files, identities


def identities_of(files: OpenedFiles, *, run_failed: bool = False) -> Identities:
    """The identities of opened files."""
    return Identities(
        file=_identity(files.checkpoint),
        sidecars=tuple(map(_identity, files.sidecars)),
        config=None if files.config is None else _identity(files.config),
        run_failed=run_failed,
    )


def _identity(fd: int) -> FileIdentity:
    return identity_of(os.fstat(fd))


def _open_companion(root_fd: int, relative_path: bytes) -> int | None:
    try:
        return open_beneath(root_fd, relative_path)
    except OSError:
        return None
