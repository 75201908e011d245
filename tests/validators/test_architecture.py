"""Recognition by names and shapes: real models are named, what the table does not know is not."""

import random
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckptd.validators import inspect_checkpoint
from ckptd.validators.architectures import TableError, load_table, table_digest
from ckptd.validators.checks.architecture import Recognized, recognize
from ckptd.validators.checks.required_keys import missing_keys
from tests.validators import vision_models as vision
from tests.validators.model_zoo import REPOSITORY, StateDict, models

SLOW_IMPORTS = pytest.mark.timeout(180)
"""timm and transformers are imported by another process, which takes its time where others want the processor too."""

KNOWN = {
    "timm:resnet18": "resnet18",
    "timm:resnet50": "resnet50",
    "timm:resnet50+features": "resnet50",
    "timm:efficientnet_b0": "efficientnet_b0",
    "timm:efficientnet_b3+features": "efficientnet_b3",
    "timm:mobilenetv3_large_100": "mobilenetv3_large",
    "timm:mobilenetv3_small_100+features": "mobilenetv3_small",
    "timm:convnext_tiny": "convnext_tiny",
    "timm:convnext_atto+features": "convnext_atto",
    "timm:vit_tiny_patch16_224": "vit_tiny_patch16",
    "timm:swin_tiny_patch4_window7_224": "swin_tiny",
    "timm:swin_tiny_patch4_window7_224+features": "swin_tiny",
    "hf:bert": "bert-base",
    "hf:gpt2": "gpt2",
    "hf:llama-7b": "llama-7b",
    "hf:llama-odd": "llama",
}
HELD_OUT = (
    *("timm:densenet121", "timm:regnety_002", "timm:mixer_s32_224", "timm:seresnet50", "timm:resnext50_32x4d"),
    *("timm:resnet26", "timm:efficientnet_lite0", "timm:mobilenetv3_small_050", "timm:convnextv2_atto"),
    *("timm:swinv2_tiny_window8_256", "timm:deit_tiny_distilled_patch16_224", "hf:t5", "hf:clip", "hf:electra"),
)


def recognized(state: StateDict) -> Recognized:
    return recognize(list(state), list(state.values()), load_table())


def state_of(build: Callable[[], nn.Module]) -> StateDict:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


def prefixed(state: StateDict, prefix: str) -> StateDict:
    return {prefix + name: shape for name, shape in state.items()}


def detector(encoder: nn.Module, decoder: str, head: str) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            encoder=nn.Sequential(OrderedDict(model=encoder)),
            decoder=vision.detection_decoder(decoder),
            head=vision.detection_head(head),
        )
    )


# ---- real models -----------------------------------------------------------------------------------------------


@SLOW_IMPORTS
@pytest.mark.parametrize("name", KNOWN)
def test_a_model_of_a_known_family_is_named_with_evidence(name: str) -> None:
    found = recognized(models(*KNOWN, *HELD_OUT)[name])
    assert found.architecture == KNOWN[name]
    assert [(part.part, part.confidence) for part in found.parts] == [("model", 1.0)]
    assert any("expected keys and shapes" in words for words in found.parts[0].evidence)


@SLOW_IMPORTS
@pytest.mark.parametrize("name", HELD_OUT)
def test_a_model_of_another_family_is_not_named(name: str) -> None:
    assert recognized(models(*KNOWN, *HELD_OUT)[name]) == ((), None)


VISION = {
    "resnet18": lambda: vision.resnet(False, (2, 2, 2, 2)),
    "resnet34": lambda: vision.resnet(False, (3, 4, 6, 3)),
    "resnet152": lambda: vision.resnet(True, (3, 8, 36, 3)),
    "mobilenetv3_large": lambda: vision.mobilenetv3(True),
    "mobilenetv3_small": lambda: vision.mobilenetv3(False),
    "efficientnet_b0": lambda: vision.efficientnet(32, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 1280),
    "efficientnet_b4": lambda: vision.efficientnet(48, (24, 32, 56, 112, 160, 272, 448), (2, 4, 4, 6, 6, 8, 2), 1792),
    "convnext_small": lambda: vision.convnext(96, (3, 3, 27, 3)),
    "vit_base_patch16": lambda: vision.vit(768, 12, 16),
    "swin_small": lambda: vision.swin(96, (2, 2, 18, 2)),
}


@pytest.mark.parametrize("name", VISION)
def test_torchvisions_names_are_known_as_well(name: str) -> None:
    found = recognized(state_of(VISION[name]))
    assert (found.architecture, found.parts[0].confidence) == (name, 1.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_all_that_timm_knows_only_the_tables_families_are_named() -> None:
    """A sixth of 1,300 models. DeiT, EVA (the first) and FlexiViT are ViTs tensor by tensor; pooling that is
    antialiased leaves no trace in the state dict of a ResNet or EfficientNet."""
    same = {"deit": "vit", "eva": "vit", "flexivit": "vit", "test_vit": "vit", "tf_efficientnet": "efficientnet"}
    named = {name.removeprefix("timm:"): recognized(state) for name, state in models("timm:*6").items()}
    assert len(named) > 200
    answers = {name: found.architecture for name, found in named.items() if found.parts}
    assert len(answers) > 8
    wrong = {}
    for name, answer in answers.items():
        of_another_name = (known for prefix, known in same.items() if name.startswith(prefix))
        family = next(of_another_name, re.split(r"[_\d]", name)[0]).removesuffix("aa").removesuffix("blur")
        if answer is None or not answer.startswith(family):
            wrong[name] = answer
    assert not wrong


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_of_transformers_is_told_apart() -> None:
    known = {"bert-large": "bert-large", "gpt2-medium": "gpt2-medium", "gemma-2b": "gemma-2b", "gpt2-odd": "gpt2"}
    known |= {"bert-classifier": "bert-base", "bert-odd": "bert", "llama-3-8b": "llama-3-8b"}
    known |= {"mistral-7b": "mistral-7b", "vit": "vit_base_patch16"}
    unknown = ("albert", "mixtral", "gpt-neox", "opt", "bloom", "whisper", "segformer", "distilbert", "qwen2")
    unknown += ("layoutlm", "beit")
    found = models(*(f"hf:{name}" for name in (*known, *unknown)))
    answers = {name.removeprefix("hf:"): recognized(state).architecture for name, state in found.items()}
    assert answers == known | dict.fromkeys(unknown)


# ---- parts and prefixes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "net.", "backbone.", "module._orig_mod.model.net.", "detector.core."]
)
def test_prefixes_are_taken_off_in_any_order(prefix: str) -> None:
    state = state_of(VISION["resnet18"])
    assert recognized(prefixed(state, prefix)).architecture == "resnet18"


@pytest.mark.parametrize(
    ("decoder", "head", "model"),
    [
        ("unet", "db_head", "dbnet"),
        ("fpn", "db_head", "dbnet"),
        ("dbpp", "db_head", "dbnet++"),
        ("pan", "db_head", "pan"),
        ("craft", "craft_head", "craft"),
        ("craft", "db_head", None),
    ],
)
def test_a_detection_model_is_known_by_its_parts(decoder: str, head: str, model: str | None) -> None:
    state = state_of(lambda: detector(vision.resnet(False, (2, 2, 2, 2)), decoder, head))
    found = recognized(prefixed(state, "model."))
    parts = {part.part: part.name for part in found.parts}
    assert found.architecture == model
    assert parts == ({"model": model} if model else {}) | {"encoder": "resnet18", "decoder": decoder, "head": head}


def test_an_unknown_encoder_leaves_the_other_parts_known() -> None:
    state = state_of(lambda: detector(nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(30))), "unet", "db_head"))
    assert {part.part: part.name for part in recognized(state).parts} == {
        "model": "dbnet", "decoder": "unet", "head": "db_head",
    }  # fmt: skip


def test_an_encoder_below_a_decoder_that_nobody_knows_names_no_model() -> None:
    decoder = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(12)))
    state = state_of(lambda: nn.Sequential(OrderedDict(encoder=VISION["resnet34"](), decoder=decoder)))
    found = recognized(state)
    assert found.architecture is None
    assert [(part.part, part.name) for part in found.parts] == [("encoder", "resnet34")]


def test_a_backbone_with_a_linear_head_beside_it_is_the_model() -> None:
    state = state_of(lambda: nn.Sequential(OrderedDict(backbone=VISION["resnet18"](), classifier=nn.Linear(512, 7))))
    assert recognized(state).architecture == "resnet18"


def test_two_encoders_of_two_kinds_have_no_one_name() -> None:
    state = state_of(
        lambda: nn.Sequential(
            OrderedDict(
                encoder=VISION["resnet18"](), backbone=VISION["resnet34"](), decoder=vision.detection_decoder("unet"),
                head=vision.detection_head("db_head"),
            )
        )
    )  # fmt: skip
    found = recognized(state)
    assert found.architecture is None
    assert sorted(part.name for part in found.parts) == ["db_head", "resnet18", "resnet34", "unet"]


# ---- almost ----------------------------------------------------------------------------------------------------


def test_keys_that_belong_to_no_resnet_make_it_none() -> None:
    """Squeeze-and-excitation between the known keys: 8 more blocks of 4 among 100."""
    state = state_of(VISION["resnet18"])
    more = {f"layer{s}.{b}.se.fc{i}.{k}": (4,) for s in (1, 2, 3, 4) for b in (0, 1) for i in (1, 2) for k in "wb"}
    assert recognized(state | more) == ((), None)


def test_another_width_makes_it_no_known_resnet() -> None:
    state = state_of(VISION["resnet18"])
    wide = {name: tuple(2 * side if side == 64 else side for side in shape) for name, shape in state.items()}
    assert recognized(wide) == ((), None)


def test_another_number_of_channels_in_the_input_does_not_matter() -> None:
    assert recognized(state_of(VISION["resnet18"]) | {"conv1.weight": (64, 1, 7, 7)}).architecture == "resnet18"


def test_counters_of_batch_norms_may_be_missing() -> None:
    """torch had none before 0.4.1."""
    state = {k: v for k, v in state_of(VISION["resnet18"]).items() if not k.endswith("num_batches_tracked")}
    assert (recognized(state).architecture, recognized(state).parts[0].confidence) == ("resnet18", 1.0)


def test_the_order_of_the_names_does_not_matter() -> None:
    state = state_of(lambda: detector(vision.resnet(False, (2, 2, 2, 2)), "fpn", "db_head"))
    items = list(state.items())
    random.Random(1).shuffle(items)
    shuffled = dict(items)
    assert recognized(shuffled) == recognized(dict(sorted(state.items())))
    assert recognized(shuffled).architecture == "dbnet"


def test_a_plain_network_is_nothing() -> None:
    plain = state_of(lambda: nn.Sequential(*(nn.Linear(8, 8) for _ in range(40))))
    segmentation = {f"decoder.blocks.{i}.conv{j}.0.weight": (16, 16, 3, 3) for i in range(5) for j in (1, 2)}
    segmentation |= {f"encoder.stages.{i}.conv.weight": (16, 16, 3, 3) for i in range(20)}
    for state in (plain, segmentation, {}, {"": (1,)}, {".": (1,)}, {"weight": ()}):
        assert recognized(state) == ((), None)


NAMES = st.lists(
    st.lists(
        st.sampled_from([
            "module", "model", "encoder", "conv1", "bn1", "layer1", "0", "1", "weight", "bias", "", "fusion", "inners",
            "outers", "binarize", "embed_tokens", "layers", "\n", "é", "features", "blocks", "patch_embed", "proj",
        ]),
        max_size=8,
    ).map(".".join),
    max_size=60,
)  # fmt: skip


@given(NAMES, st.data())
def test_no_names_whatever_make_it_fail(names: list[str], data: st.DataObject) -> None:
    shapes = [tuple(data.draw(st.lists(st.integers(0, 3), max_size=3))) for _ in names]
    assert isinstance(recognize(names, shapes, load_table()), Recognized)
    assert set(missing_keys(names, ("a", "model.encoder"))) <= {"a", "model.encoder"}


@pytest.mark.parametrize(
    "names",
    [
        [f"{'a' * 40}.{i}" for i in range(200_000)],
        ["module." * 600 + str(i) for i in range(2_500)],
        [f"module.{i % 97}.{i}.{'x' * 30}" for i in range(200_000)],
        [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(200_000)],
        [f"{'abcdefgh'[i % 8]}.{i}" for i in range(90_000)],
    ],
    ids=["one module", "deep", "scattered", "many blocks", "interleaved"],
)
def test_ten_megabytes_of_names_are_answered_without_looking_at_all_of_them(names: list[str]) -> None:
    looked = 0

    class Counting(str):
        __slots__ = ()

        def startswith(self, *args: object) -> bool:  # type: ignore[override]
            nonlocal looked
            looked += 1
            return super().startswith(*args)  # type: ignore[arg-type]

    assert recognize(list(map(Counting, names)), [(1,)] * len(names), load_table()).parts == ()
    assert looked < 40_000


# ---- files -----------------------------------------------------------------------------------------------------


def saved(path: Path, build: Callable[[], nn.Module], prefix: str = "model.") -> Path:
    state = {prefix + name: tensor.clone() for name, tensor in build().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, path)
    return path


def small_detector() -> nn.Module:
    return detector(nn.Sequential(nn.Conv2d(3, 4, 3)), "unet", "db_head")


def test_an_inspection_says_what_was_recognised(tmp_path: Path) -> None:
    found = inspect_checkpoint(saved(tmp_path / "a.ckpt", small_detector))
    assert (found.architecture, found.findings) == ("dbnet", ())
    assert [(part.part, part.name) for part in found.recognized] == [
        ("model", "dbnet"), ("decoder", "unet"), ("head", "db_head"),
    ]  # fmt: skip
    assert "state_dict.model.decoder" in found.recognized[1].evidence[0]


def test_a_model_that_nobody_knows_is_told_as_such_unless_it_is_a_toy(tmp_path: Path) -> None:
    def layers(n: int) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(*(nn.Linear(2, 2) for _ in range(n)))

    codes = [
        [found.code for found in inspect_checkpoint(saved(tmp_path / f"{n}.ckpt", layers(n))).findings] for n in (20, 3)
    ]
    assert codes == [["architecture.unknown"], []]


@pytest.mark.parametrize(
    ("prefix", "required", "missing"),
    [
        ("model.", ["model.encoder", "model.head.binarize"], []),
        ("model.", ["model.neck", "model.encoder", "model.dec"], ["model.neck", "model.dec"]),
        ("module.model.", ["model.encoder"], []),
        ("model._orig_mod.", ["model.encoder.model"], []),
        ("_orig_mod.module.model.", ["model.encoder"], []),
        ("", ["encoder.", "encoder.model.0.weight"], []),
        ("", ["ncoder", "encoder.model.0.weigh", "odel"], ["ncoder", "encoder.model.0.weigh", "odel"]),
    ],
)
def test_required_keys_are_whole_segments_of_the_state_dicts_names(
    tmp_path: Path, prefix: str, required: list[str], missing: list[str]
) -> None:
    found = inspect_checkpoint(saved(tmp_path / "a.ckpt", small_detector, prefix), required_keys=required)
    assert found.architecture_valid is (not missing)
    assert found.is_valid is (not missing)
    assert [one.code for one in found.findings] == (["state_dict.required_keys"] if missing else [])
    assert all(key in found.findings[0].message for key in missing)


def test_where_nothing_is_required_nothing_is_said_of_it(tmp_path: Path) -> None:
    assert inspect_checkpoint(saved(tmp_path / "a.ckpt", small_detector)).architecture_valid is None


def test_a_file_without_weights_lacks_what_is_required(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "a.ckpt")
    assert inspect_checkpoint(tmp_path / "a.ckpt", required_keys=["model"]).architecture_valid is False
    (tmp_path / "b.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:100])
    assert inspect_checkpoint(tmp_path / "b.ckpt", required_keys=["model"]).architecture_valid is None


# ---- a table of one's own --------------------------------------------------------------------------------------


def table(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


OURS = """
wrappers: outer
models: ours decoder=zipper head=db_head
families:
  zipper:
    part: decoder
    closed: true
    layouts:
      - expect: |
          teeth.#.weight  n n
          slider.<wb>     n
        variants: |
          zipper-{n}  3
"""


def test_a_users_table_adds_to_the_packaged_one(tmp_path: Path) -> None:
    mine = load_table(table(tmp_path, OURS))
    zipper = {f"teeth.{i}.weight": (4, 4) for i in range(3)} | {"slider.weight": (4,), "slider.bias": (4,)}
    state = prefixed(zipper, "decoder.") | prefixed(state_of(lambda: vision.detection_head("db_head")), "head.")
    state = prefixed(state, "outer.") | {"loss.weight": (1,)}
    found = recognize(list(state), list(state.values()), mine)
    assert found.architecture == "ours"
    assert [part.name for part in found.parts] == ["ours", "zipper-4", "db_head"]
    assert recognized(state).architecture is None
    assert recognize(*lists(state_of(VISION["resnet18"])), mine).architecture == "resnet18"


def lists(state: StateDict) -> tuple[list[str], list[tuple[int, ...]]]:
    return list(state), list(state.values())


def test_a_users_family_replaces_the_packaged_one_of_its_name(tmp_path: Path) -> None:
    mine = load_table(table(tmp_path, "families: {resnet: {part: encoder, layouts: [{expect: a.weight _}]}}"))
    assert recognize(*lists(state_of(VISION["resnet18"])), mine).architecture is None


def test_the_digest_tells_one_table_from_another(tmp_path: Path) -> None:
    path = table(tmp_path, OURS)
    assert load_table().digest == table_digest() != table_digest(path) == load_table(path).digest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "Expected `object`"),
        ("families: {a: {part: encoder}}", "layouts"),
        ("families: {a: {part: encoder, layouts: [{expect: a 1}], colour: red}}", "colour"),
        ("families: {a: {part: tail, layouts: [{expect: a 1}]}}", "families.a: part is 'tail'"),
        ("families: {a: {part: head, threshold: 2, layouts: [{expect: a 1}]}}", "threshold is 2"),
        ("families: {a: {part: head, layouts: [{expect: ''}]}}", "families.a.layouts[0]: expect names no key"),
        ("families: {a: {part: head, layouts: [{expect: a.b}]}}", "'a.b': the shape is missing"),
        ("families: {a: {part: head, layouts: [{expect: a.b 1 -2}]}}", "'-2' is no side"),
        ("families: {a: {part: head, layouts: [{expect: 'a.{b,c}.d {1,2,3}'}]}}", "different lengths"),
        ("families: {a: {part: head, layouts: [{expect: 'a.#.#.b 1'}]}}", "several numbers"),
        ("families: {a: {part: head, layouts: [{expect: '#.b 1'}]}}", "begins with a number"),
        ("families: {a: {part: head, layouts: [{expect: 'a.b.** 1'}]}}", "one module and .**"),
        ("families: {a: {part: head, layouts: [{expect: a 1, optional: 'b.#.c 1'}]}}", "same blocks"),
        ("families: {a: {part: head, layouts: [{expect: a 1, also: b}]}}", "write old=new"),
        ("families: {a: {part: head, layouts: [{expect: 'a.#.b 1', variants: x 1 2}]}}", "x needs 1 numbers"),
        ("families: {a: {part: head, layouts: [{expect: a n, variants: x n=b}]}}", "no number"),
        ("families: {a: {part: head, layouts: [{expect: 'a." + "<1,2,3,4,5,6,7,8>" * 6 + " 1'}]}}", "more than"),
        ("families: {a: {part: head, layouts: [{expect: a n, variants: 'x{n'}]}}", "'x{n' is no name"),
        ("families: {a: {part: head, layouts: [{expect: a n, variants: 'x{n.real}'}]}}", "is no name"),
        ("families: {a: {part: head, layouts: [{expect: a n, variants: 'x{m}'}]}}", "'m', which no expected shape"),
        ("families: {a: {part: head, layouts: [{expect: a n, variants: x m=1}]}}", "'m', which no expected shape"),
        ("models: dbnet neck=fpn", "dbnet needs part=name"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_says_where_and_why(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TableError, match=re.escape(says)) as caught:
        load_table(table(tmp_path, text))
    assert "mine.yaml" in str(caught.value)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nothing\.yaml cannot be read"):
        load_table(str(tmp_path / "nothing.yaml"))


def test_the_guides_example_is_a_table_that_works(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs/guide.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(# [^\n]*architectures\.yaml.*?)```", guide, re.DOTALL)
    assert example is not None
    state = {f"decoder.stages.{i}.conv.weight": (8, 3, 3, 3) for i in range(4)}
    state |= {f"decoder.stages.{i}.norm.{kind}": (8,) for i in range(4) for kind in ("weight", "bias")}
    state |= {"decoder.out.weight": (1, 8, 1, 1)} | prefixed(state_of(VISION["resnet34"]), "encoder.")
    assert recognize(*lists(state), load_table(table(tmp_path, example[1]))).architecture == "stroke_net"


@pytest.mark.parametrize("pattern", ["(a+)+$", "a.*.b", "[a-z]+"])
def test_a_key_is_text_and_no_pattern_that_could_run_for_ever(tmp_path: Path, pattern: str) -> None:
    mine = load_table(table(tmp_path, f"families: {{a: {{part: head, layouts: [{{expect: '{pattern} 1'}}]}}}}"))
    names: Iterable[str] = ["a" * 5000 + "!", "a.x.b", pattern]
    assert [recognize([name], [(1,)], mine).architecture for name in names] == [None, None, None]
    assert [part.name for part in recognize([pattern], [(1,)], mine).parts] == ["a"]


def test_every_entry_of_the_packaged_table_names_its_layout_and_can_be_met() -> None:
    layouts = [layout for several in load_table().by_head.values() for layout in several]
    assert len({layout.family for layout in layouts}) >= 16
    for layout in layouts:
        assert layout.keys or layout.subtrees or layout.loops, layout.label
        names = {name for variant in layout.variants for name in variant.values}
        told = {dim[0] for _, shape in layout.keys for dim in shape.dims if isinstance(dim, tuple)}
        told |= {dim[0] for lp in layout.loops for _, shape in lp.rows for dim in shape.dims if isinstance(dim, tuple)}
        assert names <= told, layout.label
