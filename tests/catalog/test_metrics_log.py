"""The metrics of one step are found in a log of any size, and nothing that a log holds is an error."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog import metrics_log
from ckptd.catalog.metrics_log import LoggedMetrics, metrics_at
from ckptd.validators.reader import FileReader
from tests.catalog.metadata_files import write
from tests.catalog.run_trees import csv_log, lightning_rows


def found(path: Path, step: int | None = None, epoch: int | None = None) -> LoggedMetrics:
    fd = os.open(path, os.O_RDONLY)
    try:
        return metrics_at(FileReader(fd), step=step, epoch=epoch)
    finally:
        os.close(fd)


def test_rows_of_one_step_are_put_together_and_those_of_others_left_out(tmp_path: Path) -> None:
    log = csv_log(tmp_path, lightning_rows(24, per_epoch=8))
    at_end = found(log, 7, 0)
    assert at_end.metrics == {"train_loss_step": 1 / 8, "val_loss": 7.5, "val/hmean": 0.007, "train_loss_epoch": 2.0}
    assert found(log, 6, 0).metrics == {"train_loss_step": 1 / 7}
    assert found(log, 24, 3) == LoggedMetrics({}, is_final=False)
    assert found(log, None, 0) == LoggedMetrics({}, is_final=True)


def test_a_log_is_final_once_it_has_passed_the_step_or_the_epoch(tmp_path: Path) -> None:
    log = csv_log(tmp_path, lightning_rows(16, per_epoch=8))
    assert found(log, 14, 1).is_final
    assert not found(log, 15, 1).is_final
    assert not found(log, 99, 1).is_final
    assert found(log, 99, 0).is_final


def test_a_name_with_two_values_at_a_step_has_none_and_equal_ones_are_one(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "step": 3, "a": 1.0, "b": 2.0}, {"epoch": 0, "step": 3, "a": 1.5, "b": 2.0}]
    assert found(csv_log(tmp_path, rows), 3, 0).metrics == {"b": 2.0}


def test_rows_of_another_epoch_belong_to_another_training_in_the_same_log(tmp_path: Path) -> None:
    rows = [{"epoch": 9, "step": 3, "a": 1.0}, {"epoch": 1, "step": 3, "a": 2.0}]
    assert found(csv_log(tmp_path, rows), 3, 1).metrics == {"a": 2.0}
    assert found(csv_log(tmp_path, rows), 3, 2).metrics == {"a": 2.0}, "after the last epoch one more is counted"
    assert found(csv_log(tmp_path, rows), 3, 5).metrics == {}


def test_a_log_without_steps_is_searched_by_epoch(tmp_path: Path) -> None:
    log = csv_log(tmp_path, [{"epoch": epoch, "acc": epoch / 10} for epoch in range(5)])
    assert found(log, 1234, 3) == LoggedMetrics({"acc": 0.3}, is_final=True)
    assert found(log, 1234, 4) == LoggedMetrics({"acc": 0.4}, is_final=False)


def test_what_was_tested_at_the_last_step_may_be_another_checkpoint(tmp_path: Path) -> None:
    row = {"epoch": 0, "step": 3, "test_acc": 1.0, "test/acc": 1.0, "testament": 2.0, "val_acc": 3.0}
    assert found(csv_log(tmp_path, [row]), 3, 0).metrics == {"testament": 2.0, "val_acc": 3.0}


def test_a_line_that_is_being_written_is_no_row_yet(tmp_path: Path) -> None:
    log = write(tmp_path / "metrics.csv", "epoch,step,a\r\n0,1,0.5\r\n0,2,0.12")
    assert found(log, 2, 0).metrics == {}
    assert not found(log, 1, 0).is_final


def test_values_that_are_no_finite_numbers_are_no_metrics(tmp_path: Path) -> None:
    log = write(tmp_path / "metrics.csv", "epoch,step,a,b,c,d\n0,1,nan,inf,text,0.5\n")
    assert found(log, 1, 0).metrics == {"d": 0.5}


HOSTILE = {
    "empty": b"",
    "no line": b"epoch,step",
    "nul": b"epoch,step,a\n0,1,\0\n\0\0\0\n0,1,0.5\0\n",
    "not text": b"epoch,step,a\n0,1,\xff\xfe\n",
    "header is not text": b"\xff\xfe,step,a\n0,1,0.5\n",
    "open quotes": b'epoch,step,a\n0,1,"0.5\n0,1,0.5,"\n"',
    "open quotes in the header": b'epoch,step,"a\n0,1,0.5\n',
    "a million columns": b"epoch,step" + b",a" * 1_000_000 + b"\n0,1" + b",0.5" * 1_000_000 + b"\n",
    "many columns": b"epoch,step" + b",a" * 10_000 + b"\n0,1" + b",0.5" * 10_000 + b"\n",
    "names that repeat": b"epoch,step,step,a\n0,1,1,0.5\n",
    "a field without end": b"epoch,step,a\n0,1," + b"9" * 3_000_000,
    "a huge number": b"epoch,step,a\n0,1," + b"9" * 5_000 + b"\n",
    "a huge step": b"epoch,step,a\n0," + b"9" * 5_000 + b",0.5\n",
    "rows too long": b"epoch,step,a\n0,1,0.5,0.6,0.7\n",
    "rows too short": b"epoch,step,a\n0,1\n",
    "binary": random.Random(1).randbytes(100_000),
    "binary with a header": b"epoch,step,a\n" + random.Random(2).randbytes(3_000_000),
    "only line feeds": b"epoch,step,a\n" + b"\n" * 3_000_000,
    "one long line": b"epoch,step,a\n" + b"," * 3_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_log_says_nothing(tmp_path: Path, name: str) -> None:
    assert found(write(tmp_path / "metrics.csv", HOSTILE[name]), 1, 0).metrics == {}


@given(st.binary(max_size=400), st.integers(0, 3), st.integers(0, 3))
def test_no_bytes_are_an_error(data: bytes, step: int, epoch: int) -> None:
    fd = os.memfd_create("log")
    try:
        os.write(fd, b"epoch,step,a,b\n" + data)
        metrics_at(FileReader(fd), step=step, epoch=epoch)
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve megabytes of rows."""
    path = tmp_path_factory.mktemp("large") / "metrics.csv"
    with open(path, "w") as file:
        file.write("epoch,step,train_loss,val_loss\r\n")
        for step in range(0, 700_000, 3):
            file.write(f"{step // 9000},{step},{step / 7:.15f},\r\n")
            if step % 9000 == 8997:
                file.write(f"{step // 9000},{step},,{step / 3:.15f}\r\n")
    return path


@pytest.mark.parametrize("epoch", [0, 1, 30, 76])
def test_in_a_large_log_the_step_is_found_with_little_reading(large: Path, epoch: int) -> None:
    step = epoch * 9000 + 8997
    fd = os.open(large, os.O_RDONLY)
    try:
        reader = FileReader(fd)
        logged = metrics_at(reader, step=step, epoch=epoch)
    finally:
        os.close(fd)
    expected = {"train_loss": float(f"{step / 7:.15f}"), "val_loss": float(f"{step / 3:.15f}")}
    assert logged == LoggedMetrics(expected, is_final=True)
    assert reader.bytes_read < 2 << 20 < reader.size


def test_in_a_large_log_a_step_that_is_not_there_has_no_metrics(large: Path) -> None:
    assert found(large, 7, 0) == LoggedMetrics({}, is_final=True)
    assert found(large, 700_000, 77) == LoggedMetrics({}, is_final=False)


@pytest.mark.parametrize("count", [metrics_log.MAX_ROWS + 1, 400_000])
def test_of_more_rows_of_one_step_than_are_read_nothing_is_said(tmp_path: Path, count: int) -> None:
    log = write(tmp_path / "metrics.csv", "epoch,step,a\n0,1,1.0\n" + "0,5,0.5\n" * count + "0,9,1.0\n")
    assert found(log, 5, 0) == LoggedMetrics({}, is_final=True)
