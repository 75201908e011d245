"""What a tensor table says of storages: their size and recorded CRC-32, or nothing where none is recorded."""

import os
import pathlib
import zlib

import pytest
import torch

from ckptd.validators import Inspection, inspect_checkpoint
from ckptd.validators.dtypes import DTYPES
from ckptd.validators.formats import dcp
from ckptd.validators.inspection import TensorInfo
from ckptd.validators.sharded.item_storages import ItemStorages, Piece
from ckptd.validators.storages import data_checksums
from tests.validators.checkpoint_files import inspect_bytes, saved
from tests.validators.directory_files import save_dcp


def by_name(inspection: Inspection) -> dict[str, TensorInfo]:
    return {tensor.name: tensor for tensor in inspection.tensors}


def test_a_storages_crc_is_that_of_its_bytes(tmp_path: pathlib.Path) -> None:
    values = {"w": torch.randn(3, 5), "i": torch.arange(7), "h": torch.randn(4).half()}
    found = by_name(inspect_bytes(tmp_path, saved({"state_dict": values})))
    for name, tensor in values.items():
        info = found[f"state_dict.{name}"]
        data = tensor.numpy().tobytes()
        assert (info.storage_nbytes, info.storage_crc32) == (len(data), zlib.crc32(data))


def test_a_view_tells_of_the_whole_storage_behind_it(tmp_path: pathlib.Path) -> None:
    whole = torch.randn(10, 4)
    found = by_name(inspect_bytes(tmp_path, saved({"state_dict": {"all": whole, "row": whole[3]}})))
    row = found["state_dict.row"]
    assert (row.nbytes, row.storage_nbytes) == (16, 160)
    assert row.storage_crc32 == found["state_dict.all"].storage_crc32 == zlib.crc32(whole.numpy().tobytes())


def test_where_no_checksums_are_recorded_none_is_told(tmp_path: pathlib.Path) -> None:
    state = {"state_dict": {"w": torch.ones(3)}}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        unchecked = saved(state)
    finally:
        torch.serialization.set_crc32_options(before)
    for data in (unchecked, saved(state, _use_new_zipfile_serialization=False)):
        (info,) = inspect_bytes(tmp_path, data).tensors
        assert (info.storage_nbytes, info.storage_crc32) == (12, None)


def test_a_tensor_of_a_sharded_checkpoint_has_the_crc_of_the_whole(tmp_path: pathlib.Path) -> None:
    weight = torch.randn(6, 4)
    save_dcp(os.fspath(tmp_path / "step-1"), {"model": {"w": weight}})
    (info,) = inspect_checkpoint(tmp_path / "step-1").tensors
    assert info.storage_crc32 == zlib.crc32(weight.numpy().tobytes())


@pytest.mark.parametrize(
    ("cuts", "told"),
    [
        ([((0, 0), (2, 4)), ((2, 0), (2, 4))], True),
        ([((0, 0), (4, 2)), ((0, 2), (4, 2))], False),
    ],
)
def test_chunks_that_are_no_slices_give_no_crc_of_the_data(
    cuts: list[tuple[tuple[int, int], tuple[int, int]]], told: bool
) -> None:
    """Their joined checksum tells tensors that are cut alike apart; beside another cut it would look like a change."""
    weight = torch.randn(4, 4)
    chunks, pieces = [], []
    for offsets, sizes in cuts:
        part = weight[offsets[0] : offsets[0] + sizes[0], offsets[1] : offsets[1] + sizes[1]].contiguous()
        chunks.append(dcp.Chunk(offsets, sizes, dcp.Extent("s", 0, 1, False)))
        pieces.append(Piece(zlib.crc32(part.numpy().tobytes()), None, ""))
    storages = ItemStorages()
    storages.add("k", "w", dcp.Tensor(DTYPES["float32"], (4, 4), False, tuple(chunks)), pieces)
    assert storages.checksums(["k"]) != [0]
    assert data_checksums(storages, ["k"]) == [zlib.crc32(weight.numpy().tobytes()) if told else None]
