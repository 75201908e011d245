"""The examples of /openapi.json: what a service answers over a small real tree."""

import json
import pathlib
from typing import Any

from tests.service.checkpoints import checkpoint_bytes, write_in_place
from tests.service.daemons import Daemon, eventually

RUN = "dbnet_resnet18/checkpoints"
BEST = f"{RUN}/epoch=3-step=300-val_loss=0.12.ckpt"


def collect(top: pathlib.Path) -> dict[str, Any]:
    """Answers by the name under which endpoints refer to them; paths as if the tree were at /data/outputs."""
    outputs = top / "outputs"
    write_in_place(outputs / f"{RUN}/last.ckpt", checkpoint_bytes(1))
    (outputs / "dbnet_resnet18/config.yaml").write_text("exp_name: dbnet_resnet18\nmodel: {architecture: dbnet}\n")
    with Daemon(outputs, top / "state", sidecar_delay_s=0.05) as daemon:
        daemon.wait_complete()
        write_in_place(outputs / BEST, checkpoint_bytes())
        eventually(lambda: daemon.health()["with_sidecar"] == 2, "both have sidecars")
        eventually(lambda: daemon.health()["verification"]["by_level"] == {"checksum": 2}, "both are verified")
        shown = _answers(daemon)
    return dict(json.loads(json.dumps(shown).replace(str(outputs), "/data/outputs")))


def _answers(daemon: Daemon) -> dict[str, Any]:
    best = daemon.entries()[BEST]["id"]
    shown: dict[str, Any] = {
        "list": daemon.get("/checkpoints", page_size=1).json(),
        "stream": daemon.get("/checkpoints/stream", limit=1).text,
        "detail": daemon.get(f"/checkpoints/{best}").json(),
        "tensors": daemon.get(f"/checkpoints/{best}/tensors").json(),
        "compatible": daemon.get("/api/inference/checkpoints", limit=1).json(),
        "health": daemon.health(),
        "liveness": daemon.get("/health").json(),
        "rebuild": {"token": daemon.rebuild(), "mode": "sweep"},
    }
    lines: list[str] = []
    with daemon.events(q="last") as events:
        for message in events:
            cursor = message.pop("_id")
            lines += [f"id: {cursor}"] if message["type"] != "batch" else []
            lines += [f"data: {json.dumps(message, separators=(',', ':'))}", ""]
            if message["type"] == "complete":
                break
    return shown | {"events": "\n".join([*lines, ""])}


def same_shape(one: Any, other: Any) -> bool:
    """Whether two answers are alike; a null is like anything."""
    if one is None or other is None:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_shape(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_shape, one, other))
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return numbers or type(one) is type(other)
