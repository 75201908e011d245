"""What a model was recognised as fills the metadata where no person has said it."""

import io
import pathlib

import msgspec
import torch

from ckptd.catalog.builder import CatalogOptions, build_catalog
from ckptd.catalog.derive import Surroundings, derive_metadata
from ckptd.catalog.metadata import parse_metadata
from ckptd.validators.inspection import FileIdentity, Inspection, Recognition

PATH = "/outputs/exp/checkpoints/a.ckpt"
PARTS = tuple(
    Recognition(part=part, name=name, family=name, confidence=1.0)
    for part, name in (("model", "dbnet"), ("encoder", "resnet18"), ("decoder", "unet"), ("head", "db_head"))
)
BLANK = Inspection(checkpoint_path=PATH, identity=FileIdentity(1, 1, 1, 1), architecture="dbnet", recognized=PARTS)
AROUND = Surroundings(checkpoint_path=PATH, relative_path=b"exp/checkpoints/a.ckpt")


def test_recognition_names_the_model_and_its_parts() -> None:
    derived = derive_metadata(BLANK, AROUND)
    model = derived.metadata.model
    assert (model.architecture, model.encoder.model_name, model.decoder.name, model.head.name) == (
        "dbnet", "resnet18", "unet", "db_head",
    )  # fmt: skip
    fields = ("model.architecture", "model.encoder.model_name", "model.decoder.name", "model.head.name")
    assert {derived.provenance[field] for field in fields} == {"checkpoint"}


def test_every_name_that_a_person_gave_comes_first() -> None:
    """The sidecar's, then the checkpoint's own hyper-parameters, then the config's, field by field."""
    found = msgspec.structs.replace(BLANK, hyper_parameters={"model": {"encoder": {"name": "resnet18d"}}})
    around = msgspec.structs.replace(
        AROUND,
        sidecar=parse_metadata(b"model: {decoder: {name: MyUNet}}"),
        config={"model": {"architecture_name": "my_dbnet"}},
    )
    model = derive_metadata(found, around).metadata.model
    assert (model.architecture, model.encoder.model_name, model.decoder.name, model.head.name) == (
        "my_dbnet", "resnet18d", "MyUNet", "db_head",
    )  # fmt: skip


def test_a_part_that_was_recognised_in_two_ways_has_no_name() -> None:
    other = Recognition(part="encoder", name="resnet50", family="resnet", confidence=1.0)
    found = msgspec.structs.replace(BLANK, recognized=(*PARTS, other))
    assert derive_metadata(found, AROUND).metadata.model.encoder.model_name is None


def test_a_library_build_takes_required_keys_and_a_table(tmp_path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"model.decoder.teeth.weight": torch.ones(2)}}, buffer)
    (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())
    table = tmp_path / "mine.yaml"
    table.write_text("families: {zip: {part: decoder, closed: true, layouts: [{expect: teeth.weight n}]}}")
    options = CatalogOptions(
        roots=(str(tmp_path),), required_keys=("model.head",), architectures=str(table), write_sidecars=True
    )
    result = build_catalog(options)
    assert result.invalid_count == 1
    assert [found.code for found in result.entries[0].findings if found.severity == "error"] == [
        "state_dict.required_keys"
    ]
    fine = build_catalog(msgspec.structs.replace(options, required_keys=("model.decoder.teeth",)))
    assert (fine.invalid_count, fine.sidecars_written) == (0, 1)
    assert "name: zip" in (tmp_path / "a.ckpt.metadata.yaml").read_text()


def test_a_sidecar_cannot_stand_in_for_an_inspection_where_keys_are_required(tmp_path: pathlib.Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "a.ckpt")
    options = CatalogOptions(roots=(str(tmp_path),), write_sidecars=True, trust_sidecars=True)
    build_catalog(options)
    assert build_catalog(options).fast_path_count == 1
    result = build_catalog(msgspec.structs.replace(options, required_keys=("b",)))
    assert (result.fast_path_count, result.invalid_count) == (0, 1)
