"""The layers where nothing but torch is installed."""

import re
import subprocess
import sys
import textwrap

HEAD = """
import importlib.abc, sys

import torch

LOADED = {name.partition(".")[0] for name in sys.modules}


class OnlyTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in LOADED or top in ("openfastervit", "torch", "torchgen"):
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, OnlyTorch())
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(body)], capture_output=True, text=True, timeout=120, check=False
    )


def test_hierarchical_attention_needs_torch_alone() -> None:
    done = run("""
        from openfastervit import HierarchicalAttention
        from openfastervit.layers import TwinsAttention

        y = HierarchicalAttention(64, num_heads=4, depth=1)(torch.randn(1, 64, 20, 30))
        y = TwinsAttention(64, num_heads=4)(y)
        y.sum().backward()
        print(*y.shape, "timm" in sys.modules)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "64", "20", "30", "False"]


def test_networks_say_what_they_lack() -> None:
    done = run("""
        import openfastervit
        openfastervit.create_model("fastervit_0")
    """)
    assert done.returncode != 0
    assert re.search(r"openfastervit\.create_model needs \w+, which is not installed", done.stderr)
