"""The wall clock jumps by a day, forth and back, under the running daemon (libfaketime): nothing is missed or lost."""

import datetime as dt
import os
import pathlib

import pytest

from tests.faults.faulty_services import assert_log_is_bounded, become, healthy
from tests.service.campaigns import assert_equal_to_tree, wait_quiet
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, epoch_of, eventually

LIBRARIES = [f"/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1" for machine in ("x86_64", "aarch64")]
LIBRARY = next((path for path in LIBRARIES if os.path.exists(path)), None)
DAY_S = 86_400

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is missing (Debian: faketime)"),
]


class Shifted(Daemon):
    """A daemon whose wall clock is moved while it runs; the monotonic clock, as on a real machine, is not."""

    @property
    def shift_file(self) -> pathlib.Path:
        """Holds by how much."""
        return self.state.with_name("shift")

    def command(self) -> list[str]:
        """The command line."""
        settings = {
            "LD_PRELOAD": LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": self.shift_file,
            "FAKETIME_NO_CACHE": 1,
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
            "DONT_FAKE_MONOTONIC": 1,
            "NO_FAKE_STAT": 1,
        }
        return ["env", *(f"{name}={value}" for name, value in settings.items()), *super().command()]

    def shift(self, seconds: int) -> None:
        """Put the clock ahead of the machine's, or behind it."""
        new = self.shift_file.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.replace(self.shift_file)

    def now(self) -> float:
        """What its clock shows."""
        return _http_date(self.get("/health").headers["date"])

    def claims_its_own_time(self) -> bool:
        """Whether it says to be complete as of about now."""
        as_of = self.health()["complete_as_of"]
        return as_of is not None and abs(epoch_of(as_of) - self.now()) < 3600


def _http_date(text: str) -> float:
    return dt.datetime.strptime(text, "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize("seconds", [DAY_S, -DAY_S], ids=["forth", "back"])
def test_after_a_jump_of_the_clock_news_arrive_and_health_claims_nothing_of_the_other_time(
    tmp_path: pathlib.Path, seconds: int
) -> None:
    outputs = tmp_path / "outputs"
    rename_in(outputs / "a.ckpt", checkpoint_bytes(1))
    daemon = Shifted(
        outputs, tmp_path / "state", sidecar_delay_s=0.1, sweep_min_s=0.2, sweep_cpu=0.5, build_degraded_s=120
    )
    daemon.shift(0)
    with daemon:
        become(daemon, {"a.ckpt": "daemon"}, "metadata_source")
        healthy(daemon)
        with daemon.events() as events:
            cursor = next(m for m in events if m["type"] == "complete")["_id"]
        before = daemon.now()
        daemon.shift(seconds)
        eventually(lambda: abs(daemon.now() - before - seconds) < 3600, "its clock has jumped")
        rename_in(outputs / "b.ckpt", checkpoint_bytes(2))
        (outputs / "a.ckpt").unlink()
        become(daemon, {"b.ckpt": "daemon"}, "metadata_source")
        # The claim moves to the new time, whichever way: a claim from the future would hide what happens until then.
        eventually(daemon.claims_its_own_time, f"complete as of now: {daemon.health()}")
        healthy(daemon)
        with daemon.events(last_event_id=cursor) as again:
            assert next(again)["type"] == "resumed"
            told = next(again)
            while told["type"] not in ("upsert", "delete"):
                told = next(again)
        wait_quiet(daemon)
        assert_equal_to_tree(daemon, outputs)
        assert daemon.stop() == 0
        daemon.shift(0)
        daemon.start()
        become(daemon, {"b.ckpt": "daemon"}, "metadata_source")
        eventually(daemon.claims_its_own_time, "and back again")
        healthy(daemon)
        assert_log_is_bounded(daemon)
