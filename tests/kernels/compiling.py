"""Compiling kernels for GPUs where there is none: down to what a chip would run, with all that Triton does for it.

The interpreter runs kernels and forgives much that a compiler does not. ``compiled`` calls the launchers, in another
process without the interpreter, on a driver that compiles what they launch and runs nothing. ``compile_for`` compiles
one kernel from its signature.
"""

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
"""Bytes that a program may have, by compute capability (CUDA C++ Programming Guide, technical specifications)."""


@dataclass(frozen=True)
class Compiled:
    """What became of a kernel."""

    kernel: str
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread that found no register."""
    shared: int
    """Bytes of a program."""
    warps: int
    products: str
    """The instruction that multiplies: ``"wgmma"``, ``"mma"`` or, without tensor cores, ``""``."""
    asynchronous: bool
    """Whether it copies into shared memory while it computes."""


def compiled(launches: str, capability: int, *arguments: Any) -> list[Compiled]:
    """Call a function, ``"module:name"``, in another process and tell what it launched, compiled for a chip.

    The function gives tensors on the CPU to the launchers, and nothing is computed. It gets ``arguments``, which must
    be what JSON can hold. It may return a list of more kernels that it compiled with ``compile_for``.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compiling", launches, str(capability), json.dumps(arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], timeout=280
    )
    if done.returncode:
        raise AssertionError(f"{launches} does not compile for {capability}:\n{done.stderr[-6000:]}")
    return [Compiled(**found) for found in json.loads(done.stdout.splitlines()[-1])]


def compile_for(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    capability: int,
    *,
    num_warps: int = 4,
    num_stages: int = 3,
    aligned: tuple[str, ...] = (),
) -> Compiled:
    """Compile one kernel. Only in a process without the interpreter.

    ``signature`` has the types of arguments (``"*bf16"``, ``"i32"``, ``"fp32"``), ``constexprs`` the values of
    constants; ``aligned`` names pointers and numbers that 16 divides.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    found = triton.compile(
        ASTSource(kernel, types, constexprs, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    return _described(found.metadata, found.asm)


@contextlib.contextmanager
def pretended(capability: int) -> Iterator[list[Compiled]]:
    """A chip as Triton sees it: what is launched is compiled, listed and not run. Tensors may be on the CPU."""
    from triton.runtime import driver

    from openfastervit.kernels import availability

    found: list[Compiled] = []

    class Chip:
        utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY[capability]},
            load_binary=lambda *arguments: (object(), 0, 0, 0, 1024),
            unload_module=lambda module: None,
        )

        @staticmethod
        def launcher_cls(source: Any, metadata: Any) -> Any:
            return lambda *arguments: None

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            from triton.backends.compiler import GPUTarget

            return GPUTarget("cuda", capability, 32)

    def list_it(**hook: Any) -> None:
        already = hook["fn"].jit_function.device_caches[0][0][hook["key"]]
        found.append(_described(already.metadata, already.asm))

    from triton import knobs

    unavailable, availability.unavailable = availability.unavailable, lambda device: None
    driver.set_active(Chip())  # type: ignore[arg-type]
    knobs.runtime.jit_post_compile_hook = list_it
    try:
        yield found
    finally:
        availability.unavailable = unavailable
        knobs.runtime.jit_post_compile_hook = None


def _described(metadata: Any, code: Any) -> Compiled:
    ptx = code["ptx"]
    use = _resources(code["cubin"])
    return Compiled(
        metadata.name,
        use["REG"],
        use["STACK"] + use["LOCAL"],
        metadata.shared,
        metadata.num_warps,
        products="wgmma" if "wgmma.mma" in ptx else "mma" if "mma.sync" in ptx else "",
        asynchronous="cp.async" in ptx,
    )


def _resources(cubin: bytes) -> dict[str, int]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|LOCAL|STACK):(\d+)", told)}


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    with pretended(int(sys.argv[2])) as kernels:
        more = getattr(importlib.import_module(module), name)(*json.loads(sys.argv[3]))
        kernels += more or []
    print(json.dumps([asdict(kernel) for kernel in kernels]))
