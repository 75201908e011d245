"""What a model is, and which keys it must have: from the settings through the workers to every reader."""

import io
import json
import os
import pathlib
import subprocess
import sys

import torch
import yaml

from tests.service.checkpoints import rename_in
from tests.service.daemons import Daemon, eventually

TABLE = """
families:
  zipper:
    part: decoder
    closed: true
    layouts:
      - expect: |
          teeth.#.weight  n n
        variants: zipper-{n}  3
"""


def saved(*names: str) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {name: torch.ones(4, 4) for name in names}, "epoch": 1}, buffer)
    return buffer.getvalue()


DETECTOR = saved(
    "model.encoder.weight",
    *(f"model.decoder.{part}.{i}.weight" for part in ("inners", "outers") for i in range(4)),
    *(f"model.head.{part}.{i}.weight" for part in ("binarize", "thresh") for i in range(3)),
)
ZIPPER = saved(*(f"model.decoder.teeth.{i}.weight" for i in range(3)), "model.encoder.weight")


def configured(path: pathlib.Path, **settings: object) -> pathlib.Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def show(daemon: Daemon, checkpoint: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ckptd.daemon.cli", "show", checkpoint],
        env={**os.environ, "CKPTD_URL": daemon.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_recognised_model_reaches_list_detail_sidecar_and_command(tmp_path: pathlib.Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0) as daemon:
        rename_in(outputs / "a.ckpt", DETECTOR)
        entry = eventually(lambda: daemon.entries().get("a.ckpt"), "it is listed")
        detail = daemon.get(f"/checkpoints/{entry['id']}").json()
        assert entry["architecture"] == "dbnet"
        assert [(part["part"], part["name"], part["confidence"]) for part in detail["recognized"]] == [
            ("model", "dbnet", 1.0), ("decoder", "unet", 1.0), ("head", "db_head", 1.0),
        ]  # fmt: skip
        assert detail["provenance"]["model.decoder.name"] == "checkpoint"
        sidecar = outputs / "a.ckpt.metadata.yaml"
        eventually(sidecar.exists, "the sidecar is written")
        assert yaml.safe_load(sidecar.read_text())["model"]["decoder"]["name"] == "unet"
        shown = show(daemon, "a.ckpt")
        assert "decoder\tunet\t100%\t" in shown
        assert "modules inners, outers" in shown


def test_required_keys_of_a_root_make_what_lacks_them_invalid(tmp_path: pathlib.Path) -> None:
    strict, lax = tmp_path / "strict", tmp_path / "lax"
    for root in (strict, lax):
        rename_in(root / "good.ckpt", DETECTOR)
        rename_in(root / "bad.ckpt", ZIPPER)
    config = configured(
        tmp_path / "c.yaml", required_keys={"*": ["model.encoder"], str(strict): ["model.head", "model.decoder"]}
    )
    with Daemon([strict, lax], tmp_path / "state", config=config) as daemon:
        daemon.wait_complete()
        found = daemon.get("/checkpoints", include_invalid="true").json()["checkpoints"]
        health = {(entry["root"], entry["path"]): entry["health"] for entry in found}
        assert health == {
            (str(strict), "good.ckpt"): "valid", (str(strict), "bad.ckpt"): "invalid",
            (str(lax), "good.ckpt"): "valid", (str(lax), "bad.ckpt"): "valid",
        }  # fmt: skip
        bad = next(entry for entry in found if entry["health"] == "invalid")
        detail = daemon.get(f"/checkpoints/{bad['id']}").json()
        assert detail["architecture_valid"] is False
        message = next(one["message"] for one in detail["findings"] if one["code"] == "state_dict.required_keys")
        assert "model.head" in message
        assert "model.decoder" not in message


def test_what_is_known_is_judged_again_when_other_questions_are_asked(tmp_path: pathlib.Path) -> None:
    """A table of one's own, then required keys, then neither; a start that asks nothing new reads nothing."""
    outputs = tmp_path / "outputs"
    rename_in(outputs / "a.ckpt", ZIPPER)
    table = tmp_path / "mine.yaml"
    table.write_text(TABLE)

    def asked(expected: tuple[str, str | None], **settings: object) -> None:
        config = configured(tmp_path / "c.yaml", **settings)
        with Daemon(outputs, tmp_path / "state", config=config, sidecars="off", verify="none") as daemon:

            def is_so() -> bool:
                entry = daemon.entries().get("a.ckpt")
                if entry is None:
                    return False
                decoder = daemon.get(f"/checkpoints/{entry['id']}").json()["metadata"]["model"]["decoder"]["name"]
                return (entry["health"], decoder) == expected

            eventually(is_so, f"{expected} with {settings}")
            daemon.wait_complete()
            # Kept as judged once nothing waits any more, a last look at a file just made included.
            eventually(lambda: daemon.health()["search"] == "full", "what it is judged by is kept")
            assert is_so()
            assert daemon.stop() == 0

    def log() -> str:
        return (tmp_path / "state.log").read_text()

    asked(("valid", None))
    asked(("valid", "zipper-4"), architectures=str(table))
    assert log().count("described again") == 1
    asked(("valid", "zipper-4"), architectures=str(table))
    assert log().count("described again") == 1
    assert "1 known, 0 inspected" in log().rpartition("catalog built")[2]
    asked(("invalid", "zipper-4"), architectures=str(table), required_keys=["model.head"])
    asked(("valid", None))
    assert log().count("described again") == 3


def test_validate_knows_the_users_table_and_required_keys(tmp_path: pathlib.Path) -> None:
    rename_in(tmp_path / "outputs" / "a.ckpt", ZIPPER)
    table = tmp_path / "mine.yaml"
    table.write_text(TABLE)
    settings = {"roots": [str(tmp_path / "outputs")], "architectures": str(table), "required_keys": ["model.head"]}
    for extra in ([], ["--in-process"]):
        done = subprocess.run(
            [sys.executable, "-m", "ckptd.daemon.cli", "validate", str(tmp_path / "outputs"), "--json", *extra,
             "--config", str(configured(tmp_path / "c.yaml", **settings))],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        (found,) = json.loads(done.stdout)["checkpoints"]
        assert [one["code"] for one in found["findings"] if one["severity"] == "error"] == ["state_dict.required_keys"]
