"""A tree with one of everything that the API can show, for tests of its description."""

import json
import os
import pathlib

import safetensors.torch
import torch

from tests.service.checkpoints import checkpoint_bytes, write_in_place


class _Custom:
    """A class that no allowlist knows."""


def write_tree(outputs: pathlib.Path) -> None:
    """Healthy and broken, safe and unsafe, with and without config, sidecar and readable name."""
    run = outputs / "dbnet_resnet18/checkpoints"
    write_in_place(run / "epoch=3-step=300-val_loss=0.12.ckpt", checkpoint_bytes())
    write_in_place(run / "last.ckpt", checkpoint_bytes(1))
    (outputs / "dbnet_resnet18/config.yaml").write_text("exp_name: dbnet_resnet18\nmodel: {architecture: dbnet}\n")
    write_in_place(outputs / "told/best.ckpt", checkpoint_bytes(2))
    (outputs / "told/best.ckpt.metadata.yaml").write_text(
        "exp_name: told\nmetrics: {hmean: 0.875, precision: .nan}\nuser: {note: keep}\n"
    )
    write_in_place(outputs / "broken/cut.ckpt", checkpoint_bytes(3)[:-40])
    write_in_place(outputs / "broken/page.ckpt", b"<!doctype html><html></html>")
    torch.save({"state_dict": {"w": torch.ones(2, 3)}, "extra": _Custom(), "run": os.system}, outputs / "unsafe.ckpt")
    safetensors.torch.save_file({"w": torch.ones(4, 4)}, outputs / "flat.safetensors", {"format": "pt"})
    (outputs / "link.ckpt").symlink_to(run / "last.ckpt")
    (outputs / "dangling.ckpt").symlink_to(outputs / "nothing.ckpt")
    _write_transformers(outputs / "trainer/checkpoint-20")


def write_odd_tree(outputs: pathlib.Path) -> None:
    """A name that is not UTF-8. In a root of its own: there are no events where it is."""
    write_in_place(pathlib.Path(os.fsdecode(os.fsencode(outputs) + b"/na\xefve.ckpt")), checkpoint_bytes(4))


def _write_transformers(directory: pathlib.Path) -> None:
    """As the transformers Trainer lays it out."""
    directory.mkdir(parents=True)
    safetensors.torch.save_file({"weight": torch.ones(3, 3)}, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    state = {"epoch": 1.0, "global_step": 20, "log_history": [], "best_metric": 0.5}
    (directory / "trainer_state.json").write_text(json.dumps(state))
    torch.save({"state": {}, "param_groups": []}, directory / "optimizer.pt")
    torch.save({}, directory / "scheduler.pt")


NAMES = 11
"""Checkpoints in both trees."""
