"""The front and the verdicts against the plainest reading of what they are."""

from hypothesis import given
from hypothesis import strategies as st

from openfastervit.benchmarking.pareto import fastest, front, judged
from tests.benchmarking.rows import row

few = st.integers(0, 6).map(float)
points_lists = st.lists(st.tuples(few, few), max_size=25)


@given(points_lists)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beaten(a: tuple[float, float]) -> bool:
        return any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in points)

    kept = front(points)
    assert sorted(kept) == [i for i, point in enumerate(points) if not beaten(point)]
    assert [points[i][0] for i in kept] == sorted(points[i][0] for i in kept)


@given(
    st.lists(
        st.tuples(st.sampled_from(["fastervit_0", "fastervit_1", "resnet50", "swin_tiny", "convnext_tiny"]), few, few),
        max_size=12,
        unique_by=lambda entry: entry[0],
    )
)
def test_a_verdict_names_all_that_are_as_accurate_and_not_slower(entries: list[tuple[str, float, float]]) -> None:
    rows = [row(name, 1 + speed, top1_published=top1) for name, speed, top1 in entries]
    for (name, speed, top1), judgement in zip(entries, judged(rows), strict=True):
        named = [other for other, s, t in entries if other != name and t >= top1 and s >= speed]
        assert judgement.not_faster_than.split() == named


def test_within_the_spread_is_not_faster() -> None:
    near = judged([row("fastervit_0", 110, spread=0.1), row("convnext_tiny", 100, spread=0.1, top1_published=82.1)])
    assert [one.not_faster_than for one in near] == ["convnext_tiny", "fastervit_0"]
    far = judged([row("fastervit_0", 130, spread=0.1), row("convnext_tiny", 100, spread=0.1, top1_published=82.1)])
    assert [one.not_faster_than for one in far] == ["", "fastervit_0"]


def test_only_what_is_alike_is_compared() -> None:
    ours = row("fastervit_0", 10)
    for other in (
        row("caformer_s18", 100, engine="torch-folded"),
        row("caformer_s18", 100, precision="bf16"),
        row("caformer_s18", 100, batch_size=1),
        row("caformer_s18", 100, side=256),  # published at 224 and 384
        row("caformer_s18", 100, top1_data="ImageNet-21K"),
        row("caformer_s18", 100, status="interrupted: 1 of 5 repeats"),
        row("resnet50", 100),  # less accurate
        row("test_resnet", 100),  # nothing published
    ):
        assert judged([ours, other])[0].not_faster_than == ""
    assert judged([ours, row("caformer_s18", 100)])[0].not_faster_than == "caformer_s18"
    assert judged([ours, row("caformer_s18", 100, side=384)])[0].not_faster_than == "caformer_s18@384"
    elsewhere = [ours, row("caformer_s18", 100, engine="torch-folded")]
    assert judged(elsewhere, across_engines=True)[0].not_faster_than == "caformer_s18"


def test_the_fastest_engine_of_each() -> None:
    slow, quick = row("resnet50", 10), row("resnet50", 20, engine="torch-folded")
    lost = row("resnet50", 99, engine="openvino", status="out of memory: no")
    other = row("resnet50", 5, batch_size=1)
    assert fastest([slow, quick, lost, other]) == [quick, other]
