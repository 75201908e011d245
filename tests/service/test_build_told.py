"""What the log says of a build is what was read."""

import pathlib

import httpx

from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually


def test_a_build_without_one_of_its_roots_is_not_told_as_whole(tmp_path: pathlib.Path) -> None:
    """It said "catalog built" where nothing could be read, and named that one as the last build."""
    here, away = tmp_path / "here", tmp_path / "away"
    for root in (here, away):
        rename_in(root / "a.ckpt", checkpoint_bytes())
    with Daemon([here, away], tmp_path / "state", sidecars="off", verify="none") as daemon:
        eventually(lambda: "catalog built: 2 entries" in daemon.log(), "the build is told")
        assert "built in part" not in daemon.log()
        whole = daemon.health()
        assert whole["last_build_at"] > whole["started_at"]
        assert whole["last_partial_build_at"] is None
        assert daemon.stop() == 0
        away.rename(tmp_path / "elsewhere")
        daemon.start()
        eventually(lambda: "catalog built in part: " in daemon.log(), "the second build is told")
        told = next(line for line in daemon.log().splitlines() if "built in part" in line)
        assert str(away) in told
        assert str(here) not in told
        assert daemon.log().count("catalog built: ") == 1
        partial = daemon.health()
        assert partial["last_partial_build_at"] > partial["started_at"]
        assert (partial["last_build_at"], partial["last_build_time"]) == (None, None)
        (tmp_path / "elsewhere").rename(away)
        httpx.post(f"{daemon.url}/rebuild").raise_for_status()
        eventually(lambda: daemon.log().count("catalog built: ") == 2, "the rebuild reads every root")
        assert daemon.health()["last_build_at"] > partial["last_partial_build_at"]
        assert daemon.health()["last_partial_build_at"] is None
