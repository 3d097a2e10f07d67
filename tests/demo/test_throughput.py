import pytest
import torch

from openfastervit.demo.network import attention_of, build
from openfastervit.demo.throughput import (
    Timing,
    compare,
    fit_windows,
    full_attention,
    in_words,
    quartiles,
)
from openfastervit.inference.fold import fold
from tests.networks import wake


def timing(side: int, *ratios: float) -> Timing:
    return Timing(side, (side // 16) ** 2, 0, tuple(100 * r for r in ratios), (100.0,) * len(ratios))


FASTER, SLOWER, EVEN = (2.0, 2.1, 1.9), (0.5, 0.4, 0.6), (0.9, 1.0, 1.2)


def test_verdict_needs_most_repeats_to_agree():
    assert timing(128, *FASTER).verdict == "faster"
    assert timing(128, *SLOWER).verdict == "slower"
    assert timing(128, *EVEN).verdict == "as fast"
    assert timing(128, *FASTER).ratio == 2
    assert quartiles((3.0,)) == (3, 3)
    assert quartiles((1.0, 2.0, 3.0)) == (1.5, 2.5)


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (
            (SLOWER, EVEN, FASTER),
            "At the demo's own 128 pixels full attention is 2.00 times as fast as hierarchical attention: its map has "
            "only 64 tokens. Hierarchical attention pays from 512 pixels on, and at 512 pixels, with 1,024 tokens, it "
            "is 2.00 times as fast.",
        ),
        (
            (FASTER, FASTER),
            "hierarchical attention is 2.00 times as fast as full attention: its map has only 64 tokens. The lead "
            "holds at every size measured; at 256 pixels it is 2.00 times as fast.",
        ),
        ((EVEN, SLOWER), "within the spread of the repeats: its map has only 64 tokens. At none of the larger sizes"),
        ((SLOWER, FASTER, EVEN), "Hierarchical attention was faster at 256 pixels, but not at all larger sizes."),
        ((SLOWER,), "full attention is 2.00 times as fast as hierarchical attention: its map has only 64 tokens."),
        ((), "Nothing was measured."),
    ],
)
def test_words_follow_from_the_numbers(verdicts, words):
    assert words in in_words([timing(128 * 2**i, *ratios) for i, ratios in enumerate(verdicts)])


@pytest.mark.parametrize("hierarchical", [True, False])
def test_what_is_timed_computes_the_same(hierarchical):
    model = build().eval() if hierarchical else full_attention()
    if not hierarchical:
        fit_windows(model, 192)
    wake(model)
    images = torch.randn(2, 1, 192, 192)
    with torch.no_grad():
        torch.testing.assert_close(fold(model, 192)(images), model(images), rtol=1e-4, atol=1e-5)


def test_twin_differs_in_attention_alone():
    model, twin = build(), full_attention()
    fit_windows(twin, 256)
    assert {i: attention.window_size for i, attention in attention_of(twin).items()} == {2: (16, 16), 3: (8, 8)}
    ours, theirs = ({name: p.shape for name, p in m.named_parameters()} for m in (model, twin))
    assert theirs.items() <= ours.items()
    assert all("carrier" in name for name in ours.keys() - theirs.keys())


def test_both_are_timed_at_each_size():
    told: list[None] = []
    found = list(compare(build().eval(), sides=(128, 192), repeats=3, tell=lambda: told.append(None)))
    assert len(told) == 6
    assert [(t.side, t.tokens, t.carriers) for t in found] == [(128, 64, 16), (192, 144, 36)]
    assert all(rate > 0 for t in found for rate in (*t.hierarchical, *t.full))
    assert {len(rates) for t in found for rates in (t.hierarchical, t.full, t.ratios)} == {3}


def test_stopping_leaves_out_the_size_that_is_not_done():
    told: list[None] = []
    found = compare(
        build().eval(), sides=(128, 192), repeats=2, tell=lambda: told.append(None), stop=lambda: len(told) == 3
    )
    assert [t.side for t in found] == [128]
