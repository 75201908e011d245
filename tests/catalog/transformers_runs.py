"""Real trainings of a tiny transformers model; run as a script they are processes of their own."""

import json
import pathlib
import sys
from typing import Any

import torch


def trainer(output_dir: pathlib.Path, callback: Any, **arguments: Any) -> Any:
    """A Trainer of eight examples, two optimizer steps an epoch."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    examples = [{"input_ids": torch.randint(0, 20, (6,)), "labels": torch.tensor(n % 2)} for n in range(8)]
    given: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(**(given | arguments)),
        train_dataset=examples,
        eval_dataset=examples,
        compute_metrics=_scores,
        callbacks=[callback],
    )


def _scores(prediction: Any) -> dict[str, float]:
    """Scores that differ at each evaluation."""
    return {"hmean": float(prediction.predictions.mean()), "recall": float(prediction.predictions.max())}


if __name__ == "__main__":
    from ckptd.catalog.callbacks.transformers import MetadataCallback

    trainer(pathlib.Path(sys.argv[1]), MetadataCallback(), **json.loads(sys.argv[2])).train()
