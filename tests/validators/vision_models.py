"""Vision models that name and shape their tensors as torchvision (0.20) and text detection code do, small to read.

torchvision itself cannot be installed beside every CPU build of torch; only its structure counts here.
"""

from collections import OrderedDict

import torch
from torch import nn


def resnet(bottleneck: bool, blocks: tuple[int, ...]) -> nn.Module:
    """`torchvision.models.resnet`."""
    expansion = 4 if bottleneck else 1
    model = nn.Module()
    model.conv1, model.bn1 = nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64)
    width_in = 64
    for stage, (n, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        made = []
        for number in range(n):
            block = nn.Module()
            block.conv1 = nn.Conv2d(width_in, width, 1 if bottleneck else 3, bias=False)
            block.bn1 = nn.BatchNorm2d(width)
            block.conv2, block.bn2 = nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width)
            if bottleneck:
                block.conv3, block.bn3 = nn.Conv2d(width, width * 4, 1, bias=False), nn.BatchNorm2d(width * 4)
            if not number and (bottleneck or stage > 1):
                block.downsample = nn.Sequential(
                    nn.Conv2d(width_in, width * expansion, 1, bias=False), nn.BatchNorm2d(width * expansion)
                )
            width_in = width * expansion
            made.append(block)
        setattr(model, f"layer{stage}", nn.Sequential(*made))
    model.fc = nn.Linear(width_in, 1000)
    return model


def _conv_norm(n_in: int, n_out: int, size: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, size, groups=groups, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


def _squeeze(n: int, inner: int) -> nn.Module:
    module = nn.Module()
    module.fc1, module.fc2 = nn.Conv2d(n, inner, 1), nn.Conv2d(inner, n, 1)
    return module


def _inverted(n_in: int, expanded: int, n_out: int, size: int, squeeze: int | None) -> nn.Module:
    layers: list[nn.Module] = [] if expanded == n_in else [_conv_norm(n_in, expanded)]
    layers.append(_conv_norm(expanded, expanded, size, groups=expanded))
    if squeeze is not None:
        layers.append(_squeeze(expanded, squeeze))
    layers.append(_conv_norm(expanded, n_out))
    module = nn.Module()
    module.block = nn.Sequential(*layers)
    return module


def mobilenetv3(large: bool) -> nn.Module:
    """`torchvision.models.mobilenetv3`; rows are (expanded, out, kernel, squeeze-excitation)."""
    if large:
        rows = "16 16 3 0,64 24 3 0,72 24 3 0,72 40 5 1,120 40 5 1,120 40 5 1,240 80 3 0,200 80 3 0,184 80 3 0,"
        rows += "184 80 3 0,480 112 3 1,672 112 3 1,672 160 5 1,960 160 5 1,960 160 5 1"
    else:
        rows = "16 16 3 1,72 24 3 0,88 24 3 0,96 40 5 1,240 40 5 1,240 40 5 1,120 48 5 1,144 48 5 1,288 96 5 1,"
        rows += "576 96 5 1,576 96 5 1"
    layers: list[nn.Module] = [_conv_norm(3, 16, 3)]
    width = 16
    for expanded, n_out, size, squeezed in (map(int, row.split()) for row in rows.split(",")):
        layers.append(_inverted(width, expanded, n_out, size, max(8, expanded // 4 // 8 * 8) if squeezed else None))
        width = n_out
    layers.append(_conv_norm(width, 6 * width))
    inner = 1280 if large else 1024
    classifier = nn.Sequential(nn.Linear(6 * width, inner), nn.Hardswish(), nn.Dropout(), nn.Linear(inner, 1000))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), classifier=classifier))


def efficientnet(stem: int, widths: tuple[int, ...], blocks: tuple[int, ...], head: int) -> nn.Module:
    """`torchvision.models.efficientnet`, the first generation."""
    layers: list[nn.Module] = [_conv_norm(3, stem, 3)]
    width = stem
    for number, (n, n_out, size) in enumerate(zip(blocks, widths, (3, 3, 5, 3, 5, 5, 3), strict=True)):
        stage = []
        for _ in range(n):
            stage.append(_inverted(width, width * (6 if number else 1), n_out, size, max(1, width // 4)))
            width = n_out
        layers.append(nn.Sequential(*stage))
    layers.append(_conv_norm(width, head))
    classifier = nn.Sequential(nn.Dropout(), nn.Linear(head, 1000))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), classifier=classifier))


def convnext(width: int, blocks: tuple[int, ...]) -> nn.Module:
    """`torchvision.models.convnext`."""
    layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, width, 4), nn.LayerNorm(width))]
    for stage, n in enumerate(blocks):
        w = width * 2**stage
        made = []
        for _ in range(n):
            block = nn.Module()
            block.layer_scale = nn.Parameter(torch.empty(w, 1, 1))
            block.block = nn.Sequential(
                nn.Conv2d(w, w, 7, groups=w), nn.Identity(), nn.LayerNorm(w), nn.Linear(w, 4 * w), nn.GELU(),
                nn.Linear(4 * w, w),
            )  # fmt: skip
            made.append(block)
        layers.append(nn.Sequential(*made))
        if stage < 3:
            layers.append(nn.Sequential(nn.LayerNorm(w), nn.Conv2d(w, 2 * w, 2)))
    top = width * 8
    classifier = nn.Sequential(nn.LayerNorm(top), nn.Flatten(), nn.Linear(top, 1000))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), classifier=classifier))


def vit(width: int, depth: int, patch: int) -> nn.Module:
    """`torchvision.models.vision_transformer`."""
    model = nn.Module()
    model.class_token = nn.Parameter(torch.empty(1, 1, width))
    model.conv_proj = nn.Conv2d(3, width, patch)
    model.encoder = nn.Module()
    model.encoder.pos_embedding = nn.Parameter(torch.empty(1, 197, width))
    model.encoder.layers = nn.Sequential()
    for number in range(depth):
        block = nn.Module()
        block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        block.self_attention = nn.MultiheadAttention(width, width // 64)
        block.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(), nn.Linear(4 * width, width), nn.Dropout()
        )
        model.encoder.layers.add_module(f"encoder_layer_{number}", block)
    model.encoder.ln = nn.LayerNorm(width)
    model.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, 1000)))
    return model


def swin(width: int, blocks: tuple[int, ...]) -> nn.Module:
    """`torchvision.models.swin_transformer`."""
    layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, width, 4), nn.Identity(), nn.LayerNorm(width))]
    for stage, n in enumerate(blocks):
        w = width * 2**stage
        made = []
        for _ in range(n):
            block = nn.Module()
            block.norm1, block.norm2 = nn.LayerNorm(w), nn.LayerNorm(w)
            block.attn = nn.Module()
            block.attn.relative_position_bias_table = nn.Parameter(torch.empty(169, w // 32))
            block.attn.register_buffer("relative_position_index", torch.empty(49 * 49))
            block.attn.qkv, block.attn.proj = nn.Linear(w, 3 * w), nn.Linear(w, w)
            block.mlp = nn.Sequential(nn.Linear(w, 4 * w), nn.GELU(), nn.Dropout(), nn.Linear(4 * w, w), nn.Dropout())
            made.append(block)
        layers.append(nn.Sequential(*made))
        if stage < 3:
            merging = nn.Module()
            merging.reduction, merging.norm = nn.Linear(4 * w, 2 * w, bias=False), nn.LayerNorm(4 * w)
            layers.append(merging)
    model = nn.Sequential(OrderedDict(features=nn.Sequential(*layers), norm=nn.LayerNorm(width * 8)))
    model.head = nn.Linear(width * 8, 1000)
    return model


def _db_conv(n_in: int, n_out: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, size, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


def detection_decoder(kind: str, channels: tuple[int, ...] = (64, 128, 256, 512), inner: int = 32) -> nn.Module:
    """Decoders of text detection, with the names that users' code gives to their parts."""
    many = len(channels)
    reduce = [_db_conv(n, inner, 1) for n in channels]
    smooth = [_db_conv(inner, inner, 3) for _ in channels]
    last = _db_conv(inner * many, inner, 3)
    outer = [nn.Sequential(nn.Conv2d(inner, inner, 3, bias=False), nn.Upsample(scale_factor=2)) for _ in channels[1:]]
    parts: dict[str, dict[str, list[nn.Module] | nn.Module]] = {
        "pan": {
            "reduce_convs": reduce, "top_down_smooth": smooth[:-1],
            "bottom_up": [_db_conv(inner, inner, 3) for _ in channels[1:]], "output_conv": last,
        },
        "dbpp": {
            "lateral_convs": reduce, "top_down": smooth[:-1],
            "bottom_up": [_db_conv(inner, inner, 3) for _ in channels[1:]], "output_conv": last,
        },
        "fpn": {"lateral_convs": reduce, "output_convs": smooth, "fusion": last},
        "unet": {
            "inners": [nn.Conv2d(n, inner, 1, bias=False) for n in channels],
            "outers": [*outer, nn.Conv2d(inner, inner, 3, bias=False)],
        },
        "craft": {"reduce_layers": reduce, "smooth_layers": smooth, "out_projection": last},
    }  # fmt: skip
    model = nn.Module()
    for name, part in parts[kind].items():
        setattr(model, name, nn.ModuleList(part) if isinstance(part, list) else part)
    return model


def detection_head(kind: str, channels: int = 32) -> nn.Module:
    """Heads of text detection."""

    def branch() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2),
            nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2), nn.Sigmoid(),
        )  # fmt: skip

    names = {"db_head": ("binarize", "thresh"), "craft_head": ("region_branch", "affinity_branch")}[kind]
    return nn.Sequential(OrderedDict((name, branch()) for name in names))
