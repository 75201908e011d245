"""A state directory that was made by somebody else, or that others may look into: the secrets in it stay ours."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.daemon.tokens import AccessError, keep_token
from tests.catalog.state_files import running

TOKEN = "known-to-somebody-else-since-yesterday"
NOBODY = 65534


def test_nobody_else_reads_the_state_in_a_directory_that_all_may_enter(tmp_path: Path) -> None:
    """It holds what is told only to those with a token."""
    tmp_path.chmod(0o755)
    previous = os.umask(0o022)
    try:
        with running(tmp_path):
            assert _open_to_others(tmp_path) == []
    finally:
        os.umask(previous)


def test_a_state_that_an_earlier_version_left_open_to_others_is_closed(tmp_path: Path) -> None:
    with running(tmp_path):
        pass
    (tmp_path / "state.sqlite3").chmod(0o644)
    with running(tmp_path):
        assert _open_to_others(tmp_path) == []


def _open_to_others(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("state.sqlite3*") if stat.S_IMODE(path.stat().st_mode) & 0o077)


@pytest.mark.root
def test_a_token_that_another_user_put_there_is_refused(tmp_path: Path) -> None:
    """Whoever wrote it knows it. In /tmp anybody can make a directory of the name that will be asked for."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    os.chown(token, NOBODY, NOBODY)
    with pytest.raises(AccessError, match=f"{token} belongs to user {NOBODY}"):
        keep_token(str(token))


def _link_to_an_open_file(token: Path) -> None:
    token.with_name("elsewhere").write_text(TOKEN)
    token.with_name("elsewhere").chmod(0o644)
    token.symlink_to("elsewhere")


@pytest.mark.parametrize("plant", [_link_to_an_open_file, os.mkfifo, Path.mkdir, lambda path: path.symlink_to("gone")])
def test_what_is_no_private_file_is_no_token_and_said_why(plant: Callable[[Path], None], tmp_path: Path) -> None:
    """Neither a traceback nor waiting for ever."""
    token = tmp_path / "token"
    plant(token)
    with pytest.raises(AccessError, match=str(token)):
        keep_token(str(token))


def test_a_link_to_a_file_that_only_we_read_is_a_token(tmp_path: Path) -> None:
    """Secrets that a deployment mounts are links."""
    token = tmp_path / "token"
    _link_to_an_open_file(token)
    token.with_name("elsewhere").chmod(0o600)
    assert keep_token(str(token)) == TOKEN
