"""PNG written by hand: pieces that no library would write."""

import struct
import zlib
from functools import cache

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END_CHUNK = 12
"""Bytes of the last chunk."""


def chunk(kind: bytes, data: bytes, *, checksum: int | None = None) -> bytes:
    """A chunk, with the right checksum or another one."""
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if checksum is None else checksum)


def header(width: int, height: int, *, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """IHDR."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def zeros(size: int, level: int = 9) -> bytes:
    """So many zeros, compressed a piece at a time."""
    packer = zlib.compressobj(level)
    piece = bytes(1 << 20)
    whole, rest = divmod(size, len(piece))
    parts = [packer.compress(piece) for _ in range(whole)]
    return b"".join([*parts, packer.compress(piece[:rest]), packer.flush()])


@cache
def one_colour(width: int, height: int, depth: int = 1) -> bytes:
    """An image of one colour: a few bytes a row, however wide it is."""
    row = 1 + (width * depth + 7) // 8
    return SIGNATURE + header(width, height, depth=depth) + chunk(b"IDAT", zeros(row * height)) + chunk(b"IEND", b"")


def with_chunk(image: bytes, extra: bytes, *, at_end: bool = False) -> bytes:
    """An image with a chunk behind its header, or before its end."""
    place = len(image) - END_CHUNK if at_end else len(SIGNATURE) + 25
    return image[:place] + extra + image[place:]
