"""``fastervit demo``."""

from pathlib import Path


def demo(*, out: Path = Path("demo-report"), seed: int = 0, epochs: int | None = None) -> int:
    """Train a pocket network on handwritten digits and write a report.

    Args:
        out: Folder for the report.
        seed: Of everything random; the same seed gives the same network and predictions.
        epochs: Passes over the training images; 20 if not given.
    """
    try:
        from openfastervit.demo import run

        run(out=out, seed=seed, epochs=epochs)
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise ValueError(f"the demo needs {error.name}: pip install 'openfastervit[demo]'") from error
    return 0
