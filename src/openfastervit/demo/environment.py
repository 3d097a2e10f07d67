"""What the demo ran on."""

from openfastervit import environment

PACKAGES = ("openfastervit", "torch", "timm", "numpy", "pillow", "scikit-learn")


def versions() -> dict[str, str]:
    """Python and the packages that the demo's results depend on."""
    return environment.versions(PACKAGES)


def hardware() -> dict[str, str | int]:
    """The processor, its cores and the operating system: the demo uses no GPU."""
    return environment.hardware(gpus=False)
