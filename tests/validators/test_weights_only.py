"""What is said about loading equals what torch itself does: what it imports, and what `weights_only=True` refuses."""

import logging
import os
import re
import warnings
from pathlib import Path

import lightning as L  # noqa: N812
import pytest
import torch

from ckptd.validators import Format, Inspection, Safety, inspect_checkpoint
from ckptd.validators.checks import weights_only
from ckptd.validators.unpickle import load_inert
from tests.validators.checkpoint_files import saved
from tests.validators.hostile import KILLERS, checkpoint_around, hostile_pickles, name_opcode
from tests.validators.real_pickles import CASES, asked, saved_as

UNREADABLE = {"tensor float8_e5m2, legacy"}
"""torch writes these in a format that it cannot read itself: AttributeError, whatever `weights_only` says."""
BEYOND = {"future_protocol", "frame_beyond_end", "binunicode8_beyond_end", "long_global", "setitem_on_list"}
"""torch's restricted unpickler does not look at protocol numbers; what stops at a limit is not judged; and CPython's
unpickler, unlike torch's, lets SETITEM replace an element of a list without a word."""

Answers = dict[str, tuple[str, str, list[str]]]


class _Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": 0.1, "path": Path("a/b")})
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def _lightning(path: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(2, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(accelerator="cpu", max_steps=1, enable_checkpointing=False, **quiet)
        trainer.fit(_Tiny(), data)
        trainer.save_checkpoint(path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Inspection], Answers]:
    directory = tmp_path_factory.mktemp("real")
    files = {}
    for number, (name, (_, options)) in enumerate(CASES.items()):
        path = directory / f"{number}.ckpt"
        path.write_bytes(saved_as(name))
        files[name] = (path, options.get("pickle_protocol", 2), True)
    _lightning(directory / "lightning.ckpt")
    files["Lightning"] = (directory / "lightning.ckpt", 2, True)
    answers = asked(list(files.values()))
    inspections = {name: inspect_checkpoint(path) for name, (path, _, _) in files.items()}
    return inspections, dict(zip(files, answers, strict=True))


def test_weights_only_is_what_torch_does_with_every_kind_of_value(real: tuple[dict[str, Inspection], Answers]) -> None:
    inspections, answers = real
    said = {name: inspection.weights_only for name, inspection in inspections.items() if name not in UNREADABLE}
    does = {name: answer[0] == "loaded" for name, answer in answers.items() if name not in UNREADABLE}
    assert said == does
    assert len(said) >= 140
    assert 60 < sum(does.values()) < 100  # the cases do not all lie on one side


def test_imports_are_the_names_that_torch_looks_up_in_order(real: tuple[dict[str, Inspection], Answers]) -> None:
    inspections, answers = real
    loaded = {name: seen for name, (_, outcome, seen) in answers.items() if outcome == "loaded"}
    assert {name: list(inspections[name].imports) for name in loaded} == loaded
    assert len(loaded) >= 140


def test_hostile_pickles_are_refused_where_torch_refuses_them(tmp_path: Path) -> None:
    """Wrong arguments are another matter: torch's own functions raise then, and so do we find the tensor wrong."""
    pickles = hostile_pickles()
    names = [name for name, data in pickles.items() if name not in KILLERS and len(data) < 100_000]
    names = [name for name in names if "doubling" not in name]
    for name in names:
        (tmp_path / name).write_bytes(checkpoint_around(pickles[name], {"data/0": b"\0" * 16}))
    answers = dict(zip(names, asked([(tmp_path / name, 2, False) for name in names]), strict=True))
    for name, (outcome, _, _) in answers.items():
        said = inspect_checkpoint(tmp_path / name).weights_only
        if outcome in ("loaded", "UnpicklingError") and name not in BEYOND:
            assert said == (outcome == "loaded"), name


def test_the_names_are_those_of_the_installed_torch() -> None:
    allowed = torch._weights_only_unpickler._get_allowed_globals()
    own = {  # by import torch alone; other tests may have imported more
        f"{item.__module__}.{item.__qualname__}"
        for item in torch.serialization.get_safe_globals()
        if item.__module__ in ("torch.nested._internal.nested_tensor", "torch.distributed._mesh_layout")
    }
    assert {*allowed, *own} == weights_only.TORCH_ALLOWED


def _accepts(data: bytes) -> bool:
    inert = load_inert(data)
    assert inert.failure is None
    return weights_only.accepts(data, inert.tally)


@pytest.mark.parametrize("size", [0, 1, 20, 21, 63, 64, 65, 255, 256, 70_000])
def test_texts_of_any_length_are_skipped_exactly(size: int) -> None:
    """The bytes of a text are no opcodes: here they are ones that torch refuses."""
    text = b"X" + size.to_bytes(4, "little") + b"\x93" * size
    text = text.replace(b"\x93", b"I")  # INT, which torch does not know
    assert _accepts(b"\x80\x02}" + text + b"Ns.")
    assert not _accepts(b"\x80\x02}" + text + b"I5\ns.")


@pytest.mark.parametrize(
    "opcodes",
    [
        pytest.param(b"N0N", id="POP"),
        pytest.param(b"N20", id="DUP"),
        pytest.param(b"S'a'\n", id="STRING"),
        pytest.param(b"L5L\n", id="LONG"),
        pytest.param(b"\x8c\x01a", id="SHORT_BINUNICODE"),
        pytest.param(b"C\x01a", id="SHORT_BINBYTES"),
        pytest.param(b"\x8b\x01\x00\x00\x00\x05", id="LONG4"),
        pytest.param(b"]\x94", id="MEMOIZE"),
        pytest.param(b"(d", id="DICT"),
        pytest.param(b"\x8f(K\x01\x90", id="ADDITEMS"),
        pytest.param(b"}Nb", id="BUILD on a dict"),
        pytest.param(b"(X\x06\x00\x00\x00moduleNNtQ", id="a persistent id of no storage"),
        pytest.param(name_opcode("collections", "Counter") + b")R(K\x01e", id="APPENDS to a Counter"),
    ],
)
def test_what_the_restricted_unpickler_refuses_is_seen_among_allowed_names(opcodes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "refused.ckpt"
    path.write_bytes(checkpoint_around(b"\x80\x02" + opcodes + b"."))
    inspection = inspect_checkpoint(path)
    assert inspection.weights_only is False
    assert inspection.safety is Safety.SAFE


def test_a_format_without_a_pickle_has_no_answer(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "w.ckpt")
    inspection = inspect_checkpoint(tmp_path / "w.ckpt")
    assert inspection.format is Format.SAFETENSORS
    assert inspection.weights_only is None
    assert inspection.imports == ()


def test_names_behind_the_end_of_the_pickle_count_for_safety_but_are_not_imported(tmp_path: Path) -> None:
    hidden = b"\x80\x02" + name_opcode("os", "system") + b"." + b"\x80\x02" + name_opcode("builtins", "eval") + b"."
    path = tmp_path / "hidden.ckpt"
    path.write_bytes(checkpoint_around(b"\x80\x02}." + hidden))
    inspection = inspect_checkpoint(path)
    assert inspection.safety is Safety.UNSAFE
    assert inspection.unsafe_globals == ("os.system", "builtins.eval")
    assert inspection.imports == ()
    assert inspection.weights_only is True  # torch stops at STOP


def test_a_pickle_that_torch_does_not_read_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "package.ckpt"
    records = {"data/0": b"\0" * 16, "models/net.pkl": b"\x80\x02" + name_opcode("os", "system") + b"."}
    path.write_bytes(checkpoint_around(b"\x80\x02}.", records))
    told = [found for found in inspect_checkpoint(path).findings if found.code == "pickle.unread_record"]
    assert len(told) == 1
    assert "archive/models/net.pkl" in told[0].message


def test_reported_imports_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "many.ckpt"
    names = b"".join(name_opcode("m", f"n{i}" * 100) + b"0" for i in range(2000))
    path.write_bytes(checkpoint_around(b"\x80\x02" + names + b"}."))
    inspection = inspect_checkpoint(path)
    assert len(inspection.imports) == 200
    assert max(map(len, inspection.imports)) <= 201


def test_a_legacy_file_counts_all_of_its_five_pickles(tmp_path: Path) -> None:
    data = saved({"state_dict": {"w": torch.ones(2)}}, _use_new_zipfile_serialization=False)
    stop = re.search(rb"\x80\x02M\xe9\x03\.", data)
    assert stop is not None
    path = tmp_path / "legacy.ckpt"
    hidden = b"\x80\x02" + name_opcode("os", "system") + b"0M\xe9\x03."
    path.write_bytes(data[: stop.start()] + hidden + data[stop.end() :])
    inspection = inspect_checkpoint(path)
    assert inspection.safety is Safety.UNSAFE
    assert inspection.imports[0] == "os.system"
    assert inspection.weights_only is False
    assert os.fspath(path) == inspection.checkpoint_path
