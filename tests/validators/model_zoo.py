"""Real models' names and shapes: timm's and transformers' from a process of their own, on the meta device.

timm imports torchvision, whose CPU build cannot be had everywhere; nothing of it is needed to build a model, so a
stand-in takes its place, in that process only.
"""

import functools
import importlib.machinery
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

StateDict = dict[str, tuple[int, ...]]
"""Name → shape."""

REPOSITORY = Path(__file__).parents[2]
_TORCHVISION = (
    *("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops"),
    *("torchvision.ops.misc", "torchvision.datasets", "torchvision.models", "torchvision.utils", "torchvision.io"),
    "torchvision.models.feature_extraction",
)


@functools.cache
def models(*names: str) -> dict[str, StateDict]:
    """State dicts by name.

    Args:
        names: `timm:resnet18`, `timm:resnet18+features` (a backbone, as detection models embed it), `hf:bert` (see
            `_transformers`), `timm:*3` for every third model that timm knows.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.validators.model_zoo", *names],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    return {name: {key: tuple(shape) for key, shape in state.items()} for name, state in built.items()}


def _build(names: list[str]) -> dict[str, dict[str, list[int]]]:
    import torch

    built = {}
    if any(name.startswith("timm:") for name in names):
        _put_torchvision_aside()

        names = [one for name in names for one in _timm_names(name)]
    for name in names:
        library, _, model = name.partition(":")
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            try:
                module = _timm(model) if library == "timm" else _transformers(model)
            except (NotImplementedError, RuntimeError) as error:
                # A few hundred of timm's compute something at once, which the meta device cannot.
                print(f"{name}: {error}", file=sys.stderr)
                continue
            built[name] = {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
    return built


def _timm_names(name: str) -> list[str]:
    import timm

    if not name.startswith("timm:*"):
        return [name]
    return [f"timm:{model}" for model in timm.list_models()[:: int(name.removeprefix("timm:*"))]]


def _timm(name: str) -> Any:
    import timm

    features = {"features_only": True} if name.endswith("+features") else {}
    return timm.create_model(name.removesuffix("+features"), pretrained=False, **features)


def _transformers(name: str) -> Any:
    import transformers as hf

    small = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    makers = {
        "bert": lambda: hf.BertModel(hf.BertConfig()),
        "bert-large": lambda: hf.BertForMaskedLM(
            hf.BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        ),
        "bert-classifier": lambda: hf.BertForTokenClassification(hf.BertConfig()),
        "bert-odd": lambda: hf.BertModel(hf.BertConfig(**small)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config()),
        "gpt2-medium": lambda: hf.GPT2Model(hf.GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
        "gpt2-odd": lambda: hf.GPT2Model(hf.GPT2Config(n_embd=64, n_layer=2, n_head=4)),
        "llama-7b": lambda: hf.LlamaForCausalLM(hf.LlamaConfig()),
        "llama-3-8b": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8)
        ),
        "llama-odd": lambda: hf.LlamaModel(hf.LlamaConfig(**small)),
        "mistral-7b": lambda: hf.MistralForCausalLM(hf.MistralConfig()),
        "gemma-2b": lambda: hf.GemmaForCausalLM(
            hf.GemmaConfig(
                hidden_size=2048, num_hidden_layers=18, intermediate_size=16384, num_attention_heads=8,
                num_key_value_heads=1,
            )
        ),
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig()),
        "t5": lambda: hf.T5Model(hf.T5Config(num_layers=2)),
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig()),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig()),
        "distilbert": lambda: hf.DistilBertModel(hf.DistilBertConfig()),
        "electra": lambda: hf.ElectraModel(
            hf.ElectraConfig(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
        ),
        "albert": lambda: hf.AlbertModel(hf.AlbertConfig(num_hidden_layers=2)),
        "qwen2": lambda: hf.Qwen2Model(hf.Qwen2Config(**small)),
        "mixtral": lambda: hf.MixtralModel(hf.MixtralConfig(**small)),
        "gpt-neox": lambda: hf.GPTNeoXModel(hf.GPTNeoXConfig(**small)),
        "opt": lambda: hf.OPTModel(hf.OPTConfig(num_hidden_layers=2)),
        "bloom": lambda: hf.BloomModel(hf.BloomConfig(n_layer=2)),
        "whisper": lambda: hf.WhisperModel(hf.WhisperConfig()),
        "layoutlm": lambda: hf.LayoutLMModel(hf.LayoutLMConfig()),
        "beit": lambda: hf.BeitModel(hf.BeitConfig()),
        "segformer": lambda: hf.SegformerModel(hf.SegformerConfig()),
    }  # fmt: skip
    return makers[name]()


def _put_torchvision_aside() -> None:
    """Modules whose every attribute is a class that can be made from anything, and whose attributes are their names."""

    class Anything(type):
        def __getattr__(cls, name: str) -> str:
            if name.startswith("__"):
                raise AttributeError(name)
            return name

    class Module(types.ModuleType):
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {"__init__": lambda *_, **__: None})

    for name in _TORCHVISION:
        module = Module(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__dict__["__version__"] = "0.28.0"
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


if __name__ == "__main__":
    print(json.dumps(_build(sys.argv[1:])))
