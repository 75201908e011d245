"""kill -9 at any moment: what is served afterwards is true, no listener was misled, and nothing torn is left."""

import pathlib
import random
import socket
import time

import pytest

from tests.service.campaigns import (
    SETTINGS,
    Contents,
    HealthSampler,
    Shadow,
    Writers,
    assert_equal_to_tree,
    assert_quiet_tree_is_fully_described,
    check_sidecars,
)
from tests.service.daemons import Daemon

KILLS = 100
EARLY_SHARE = 0.25
"""Of the kills: while the daemon is starting, before it answers or soon after."""


def free_port() -> int:
    """Clients come back to the same address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_each_of_100_kills_under_load_the_catalog_equals_the_tree_and_no_client_is_misled(
    tmp_path: pathlib.Path,
) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    contents = Contents(tmp_path / "contents")
    dice = random.Random(9)
    daemon = Daemon(outputs, tmp_path / "state", port=free_port(), **SETTINGS)
    kills = 0
    with (
        daemon,
        Writers(outputs, contents, tmp_path / "logs", count=2, seed=9, shared=False) as writers,
        HealthSampler(daemon) as sampler,
        Shadow(daemon) as shadow,
    ):
        while kills < KILLS:
            writers.start(dice.randrange(4, 16))
            time.sleep(dice.uniform(0, 0.4))  # not a wait for anything: the moment is what is tried
            daemon.kill()
            kills += 1
            check_sidecars(outputs)
            while dice.random() < EARLY_SHARE and kills < KILLS:
                daemon.launch()
                time.sleep(dice.uniform(0, 1.0))
                daemon.kill()
                kills += 1
            daemon.start()
            ended_at = writers.wait()
            daemon.wait_complete(ended_at)
            assert_equal_to_tree(daemon, outputs)
        assert_quiet_tree_is_fully_described(daemon, outputs)
        shadow.assert_caught_up()
        history = writers.history()
    sampler.check_claims()
    claims = sampler.check_completeness(history, contents)
    shadow.check_truth(history, contents)
    print(f"{claims} claims, {len(shadow.told)} told, {shadow.resumed} times resumed, {shadow.resets} resets")
    assert claims > KILLS / 2
    assert shadow.resumed > KILLS / 3, f"{shadow.resets} resets"
    assert len(shadow.told) > 5 * KILLS
