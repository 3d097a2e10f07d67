"""The designs, the networks they stand in, and what the paper says of them."""

from collections.abc import Mapping
from types import MappingProxyType

from studies.common.comparison import Scale, Variant
from studies.common.scales import fastervit_scales

DESIGNS = ("hat", "window", "shifted-window", "twins", "edgevit", "global")

PAPER: Mapping[str, tuple[float, int]] = MappingProxyType(
    {"hat": (82.1, 5802), "twins": (80.8, 6896), "edgevit": (81.0, 5928)}
)
"""Top-1 on ImageNet-1K in percent and images a second on an A100, of FasterViT-0 with each (arXiv 2306.06189)."""

VARIANTS = tuple(
    Variant(
        design,
        {"model_options": {"attention": design}},
        compared_with=None if design == "hat" else "hat",
        facts={"paper_top1": PAPER[design][0], "paper_images_per_second": PAPER[design][1]}
        if design in PAPER
        else {"paper_top1": "", "paper_images_per_second": ""},
    )
    for design in DESIGNS
)
"""Each is the token mixer of stage 2; stage 3 has plain windows, as large as its map."""

SCALES: Mapping[str, Scale] = MappingProxyType(
    fastervit_scales(cpu={"epochs": 3, "warmup_epochs": 0.5}, gpu={"epochs": 15, "warmup_epochs": 2})
)
