"""A file name's numbers belong to whom they are named for, or to nobody."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.catalog.file_names import parse_file_name, stem_of


@pytest.mark.parametrize(
    ("name", "epoch", "step", "metrics"),
    [
        ("epoch-05_step-000205_hmean-0.8756.ckpt", 5, 205, {"hmean": 0.8756}),
        ("epoch=28-step=23722-val_loss=0.12.ckpt", 28, 23722, {"val_loss": 0.12}),
        ("epoch=28-step=23722.ckpt", 28, 23722, {}),
        ("epoch-18_step-001957.ckpt", 18, 1957, {}),
        ("epoch=0-val_loss=-0.12.ckpt", 0, None, {"val_loss": -0.12}),
        ("epoch-1_loss--0.5.ckpt", 1, None, {"loss": -0.5}),
        ("epoch=1-val_loss=1.2e-05-v2.ckpt", 1, None, {"val_loss": 1.2e-05}),
        ("epoch-1_val_loss-1e-05.ckpt", 1, None, {"val_loss": 1e-05}),
        ("epoch=2_val_loss=0.1.ckpt", 2, None, {"val_loss": 0.1}),
        ("mnist-epoch=02-val_loss=0.32.ckpt", 2, None, {"val_loss": 0.32}),
        ("epoch=3-val_map@50=0.5.ckpt", 3, None, {"val_map@50": 0.5}),
        ("model_best_hmean-0.9.ckpt", None, None, {"hmean": 0.9}),
        ("best_epoch=3.ckpt", 3, None, {}),
        ("epoch_05.ckpt", 5, None, {}),
        ("checkpoints/epoch=3-val/hmean=0.87.ckpt", 3, None, {"val/hmean": 0.87}),
        ("checkpoints/epoch=1-step=4-val/hmean=0.600.ckpt", 1, 4, {"val/hmean": 0.6}),
        ("checkpoints/val/hmean=0.87-epoch=2.ckpt", 2, None, {"val/hmean": 0.87}),
        ("epoch-03_val/hmean-0.87.ckpt", 3, None, {"val/hmean": 0.87}),
        ("checkpoint-500", None, 500, {}),
    ],
)
def test_what_is_spelled_out_is_read(name: str, epoch: int | None, step: int | None, metrics: dict[str, float]) -> None:
    facts = parse_file_name(name.encode())
    assert (facts.epoch, facts.step, facts.metrics) == (epoch, step, metrics)


@pytest.mark.parametrize(
    "name",
    [
        "best.ckpt",
        "best-v1.ckpt",
        "last.ckpt",
        "last-1.ckpt",
        "last_20251011_004442.ckpt",
        "resnet-50.ckpt",
        "vit-16_patch-32.ckpt",
        "seed=3-lr=0.1.ckpt",
        "998.ckpt",
        "2025-10-11.ckpt",
        "loss=nan.ckpt",
        "loss=1e999.ckpt",
        "epoch=1e3.ckpt",
        "epoch=\u0661.ckpt",
        "run-1/best.ckpt",
    ],
)
def test_numbers_that_nobody_named_are_nobodys(name: str) -> None:
    facts = parse_file_name(name.encode())
    assert (facts.epoch, facts.step, facts.metrics) == (None, None, {})


def test_a_number_after_a_dash_is_no_metric_unless_its_name_is_a_measure() -> None:
    assert parse_file_name(b"resnet-50_step-100.ckpt").metrics == {}


@settings(deadline=None)
@given(st.binary(max_size=255))
def test_any_bytes_are_a_name(name: bytes) -> None:
    facts = parse_file_name(name)
    assert facts.epoch is None or facts.epoch >= 0
    assert stem_of(name) == name or name.startswith(stem_of(name) + b".")


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**12), st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from("efg"))
def test_lightnings_names_read_back_what_was_formatted(epoch: int, step: int, loss: float, form: str) -> None:
    value = f"{loss:.6{form}}"
    facts = parse_file_name(f"epoch={epoch:02d}-step={step}-val_loss={value}.ckpt".encode())
    assert (facts.epoch, facts.step, facts.metrics) == (epoch, step, {"val_loss": float(value)})
