"""The commands take checkpoints that are directories: named themselves, by a link, or found in a tree."""

from pathlib import Path

from tests.catalog.checkpoint_directories import dcp_files, put, trainer_files
from tests.daemon.command_line import ckptd, ckptd_json


def test_validate_lists_each_directory_once_however_it_was_named(tmp_path: Path) -> None:
    put(tmp_path / "run" / "step-1", dcp_files(1))
    put(tmp_path / "run" / "checkpoint-500", trainer_files())
    put(tmp_path / "run" / "step-2", dcp_files(2))
    (tmp_path / "run" / "step-2" / "__0_0.distcp").unlink()
    (tmp_path / "run" / "newest").symlink_to("checkpoint-500")
    found = ckptd_json("validate", tmp_path / "run" / "newest", tmp_path, home=tmp_path, status=1)["checkpoints"]
    assert [(Path(each["checkpoint_path"]).name, each["format"], each["is_valid"]) for each in found] == [
        ("checkpoint-500", "transformers", True),
        ("step-1", "dcp", True),
        ("step-2", "dcp", False),
    ]


def test_metadata_and_the_index_stand_beside_directories(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    put(outputs / "run" / "step-1", dcp_files(1))
    put(outputs / "run" / "checkpoint-500", trainer_files())
    (outputs / "run" / "newest").symlink_to("checkpoint-500")
    assert ckptd("metadata", outputs / "run" / "step-1", home=tmp_path).returncode == 0
    assert [str(path.relative_to(outputs)) for path in outputs.rglob("*.yaml")] == ["run/step-1.metadata.yaml"]
    assert ckptd("index", "rebuild", outputs, home=tmp_path).returncode == 0
    assert '"run/step-1"' in (outputs / ".checkpoint_index.json").read_text()
    verified = ckptd("index", "verify", outputs, home=tmp_path)
    assert (verified.returncode, verified.stderr.strip()) == (0, "the index says what the tree says")


def test_an_index_of_a_checkpoint_directory_is_refused_with_the_name_of_what_holds_it(tmp_path: Path) -> None:
    step = put(tmp_path / "run" / "step-1", dcp_files(1))
    result = ckptd("index", "rebuild", step, home=tmp_path)
    assert result.returncode == 2
    assert "is itself a checkpoint (dcp)" in result.stderr
    assert str(step.parent) in result.stderr
