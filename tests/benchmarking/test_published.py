"""The tables of published figures: their form, and that they speak of networks that exist."""

import timm

from openfastervit.benchmarking.peers import DEFAULT_PEERS, resolve_peer
from openfastervit.benchmarking.published import SOURCES, paper_speeds, published_figures, published_for
from openfastervit.models.fastervit import VARIANTS


def test_each_figure_is_of_a_network_that_exists_at_a_size_it_was_made_for() -> None:
    figures = published_figures()
    assert len({(figure.model, figure.size) for figure in figures}) == len(figures), "one figure a network and size"
    for figure in figures:
        assert 75 < figure.top1 < 90
        assert figure.source in SOURCES
        assert figure.data in ("ImageNet-1K", "ImageNet-21K")
        if figure.model in VARIANTS:
            assert VARIANTS[figure.model].get("img_size", 224) == figure.size
            assert (figure.data == "ImageNet-21K") == ("_w" in figure.model)
            continue
        config = timm.get_pretrained_cfg(f"{figure.model}.{figure.tag}", allow_unregistered=False)
        assert config is not None, figure
        sides = {size[1] for size in (config.input_size, config.test_input_size) if size is not None}
        assert figure.size in sides
        assert config.num_classes == 1000
        assert not any(mark in figure.tag for mark in ("dist", "in22k", "in12k", "in21k", "ssld", "clip")), figure


def test_every_default_peer_and_variant_has_one() -> None:
    for name in (*VARIANTS, *map(resolve_peer, DEFAULT_PEERS)):
        assert published_for(name, (224, 224)) is not None


def test_the_figure_of_the_nearest_size_and_of_the_tag() -> None:
    def told(model: str, height: int, width: int) -> tuple[str, int] | None:
        figure = published_for(model, (height, width))
        return None if figure is None else (figure.tag, figure.size)

    assert told("convnext_tiny", 224, 224) == ("fb_in1k", 224)
    assert told("convnext_tiny", 384, 384) == ("fb_in1k", 288)
    assert told("caformer_s18", 384, 384) == ("sail_in1k_384", 384)
    assert told("caformer_s18.sail_in1k", 384, 384) == ("sail_in1k", 224)
    assert told("resnet50.tv_in1k", 224, 224) is None
    assert told("test_resnet", 224, 224) is None


def test_the_papers_fastervits_are_those_of_the_figures() -> None:
    speeds = {speed.model: speed for speed in paper_speeds()}
    assert len(speeds) == len(paper_speeds()) == 25
    for i in range(7):
        figure = published_for(f"fastervit_{i}", (224, 224))
        assert figure is not None
        assert speeds[f"FasterViT-{i}"].top1 == figure.top1
    assert all(100 < speed.images_per_second < 10_000 and 75 < speed.top1 < 90 for speed in speeds.values())
