"""A link takes the place of a checkpoint: the sidecar that described the file goes with it, for a link has none."""

import pathlib

import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually


def put_link(path: pathlib.Path, target: str) -> None:
    """In one step, as `ln -sfn` does not: the name is never missing."""
    prepared = path.with_name("link.part")
    prepared.symlink_to(target)
    prepared.replace(path)


@pytest.mark.parametrize(("target", "code"), [("nowhere.ckpt", "link.dangling"), ("other.ckpt", None)])
def test_our_sidecar_goes_when_a_link_takes_the_place_of_its_checkpoint(
    tmp_path: pathlib.Path, target: str, code: str | None
) -> None:
    outputs = tmp_path / "outputs"
    for seed, name in enumerate(("a.ckpt", "other.ckpt")):
        rename_in(outputs / name, checkpoint_bytes(seed))
    sidecar = outputs / "a.ckpt.metadata.yaml"
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
        eventually(sidecar.exists, "the file has its sidecar")
        put_link(outputs / "a.ckpt", target)
        eventually(lambda: not sidecar.exists(), "its sidecar goes with it")
        entry = eventually(lambda: daemon.entries().get("a.ckpt"), "the link is listed")
        assert code is None or code in {found["code"] for found in entry["findings"]}
        assert (outputs / "other.ckpt.metadata.yaml").exists()


def test_a_sidecar_of_ours_beside_a_dangling_link_goes_at_the_next_sweeps_and_a_persons_stays(
    tmp_path: pathlib.Path,
) -> None:
    """The file was replaced, or the target went, while the daemon did not run."""
    outputs = tmp_path / "outputs"
    for name in ("a.ckpt", "b.ckpt"):
        rename_in(outputs / name, checkpoint_bytes(1))
    ours, edited = (outputs / f"{name}.ckpt.metadata.yaml" for name in "ab")
    daemon = Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1, sweep_min_s=0.2, sweep_cpu=0.5)
    with daemon:
        eventually(lambda: ours.exists() and edited.exists(), "both have their sidecars")
        daemon.wait_complete()
        daemon.kill()
    edited.write_text(edited.read_text() + "# keep\n")
    for name in ("a.ckpt", "b.ckpt"):
        put_link(outputs / name, "nowhere.ckpt")
    (daemon.state / "state.sqlite3").unlink()  # so that nothing is known of what was there
    with daemon.start():
        eventually(lambda: not ours.exists(), "ours goes")
        daemon.wait_complete()
        assert edited.read_text().endswith("# keep\n")
