"""Images that were made to harm: a function for each kind, from a generator of random numbers to bytes.

The same generator gives the same bytes, so a finding can be made again from its kind and number.
"""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from studies.hostile_input import png

Make = Callable[[random.Random], bytes]
SERVED = ("JPEG", "PNG", "WEBP")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file of a kind that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """One with something in it."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def good(draw: random.Random) -> bytes:
    """A sound image: it has to be answered."""
    kind = draw.choice(SERVED)
    options = {"progressive": draw.random() < 0.5} if kind == "JPEG" else {}
    return encoded(picture(draw.randrange(8), draw.randrange(30, 300), draw.randrange(30, 300)), kind, **options)


def truncated(draw: random.Random) -> bytes:
    """Cut off anywhere: within the first bytes, at a marker, before the last byte."""
    data = good(draw)
    place = draw.choice([draw.randrange(min(40, len(data))), draw.randrange(len(data)), len(data) - 1])
    return data[:place]


def flipped(draw: random.Random) -> bytes:
    """Some bits turned over, more of them near the head."""
    data = bytearray(good(draw))
    for _ in range(draw.choice([1, 2, 8, 64])):
        data[min(draw.randrange(len(data)), draw.randrange(len(data)))] ^= 1 << draw.randrange(8)
    return bytes(data)


def spliced(draw: random.Random) -> bytes:
    """Parts left out, doubled, exchanged, or taken from another image."""
    data, other = good(draw), good(draw)
    a, b = sorted((draw.randrange(len(data)), draw.randrange(len(data))))
    c = draw.randrange(len(other))
    forms = [
        data[:a] + data[b:],
        data[:b] + data[a:],
        data[b:] + data[:b],
        data[:a] + other[c:],
        data[:a] + draw.randbytes(b - a) + data[b:],
        data + other,
    ]
    return draw.choice(forms)


def magic_and_noise(draw: random.Random) -> bytes:
    """The first bytes of an image, and then noise."""
    heads = [
        b"\xff\xd8\xff\xe0\x00\x10JFIF\0",
        b"\xff\xd8\xff\xc0",
        png.SIGNATURE,
        png.SIGNATURE + b"\0\0\0\rIHDR",
        b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"RIFF\x20\0\0\0WEBPVP8L",
    ]
    return draw.choice(heads) + draw.randbytes(draw.randrange(2000))


def bomb(draw: random.Random) -> bytes:
    """Gigabytes of pixels in a few kilobytes."""
    width, height, depth = draw.choice(
        [(30_000, 30_000, 1), (65_000, 3_000, 8), (2**31 - 1, 1, 1), (20_000, 20_000, 1)]
    )
    if width == 2**31 - 1:
        return png.SIGNATURE + png.header(width, 1) + png.chunk(b"IDAT", png.zeros(10**6)) + png.chunk(b"IEND", b"")
    return png.one_colour(width, height, depth)


def bomb_within_limits(draw: random.Random) -> bytes:
    """As many pixels as are decoded, and no more."""
    if draw.random() < 0.5:
        return png.one_colour(7_000, 7_000)
    return _large_jpeg()


@cache
def _large_jpeg() -> bytes:
    return encoded(Image.new("L", (7_000, 7_000)), "JPEG", quality=10)


def bomb_in_text(draw: random.Random) -> bytes:
    """A PNG with megabytes of compressed text or colour profile beside its pixels."""
    size = draw.choice([2**16, 2**22, 2**26])
    packed = _zeros(size)
    extra = {
        b"zTXt": b"Comment\0\0" + packed,
        b"iCCP": b"icc\0\0" + packed,
        b"iTXt": b"Comment\0\1\0\0\0" + packed,
        b"tEXt": b"Comment\0" + b"x" * min(size, 2**20),
        b"eXIf": b"II*\0" + bytes(min(size, 2**20)),
    }
    kind = draw.choice(list(extra))
    image = encoded(picture(1), "PNG")
    for _ in range(draw.choice([1, 1, 20])):
        image = png.with_chunk(image, png.chunk(kind, extra[kind]), at_end=draw.random() < 0.5)
    return image


@cache
def _zeros(size: int) -> bytes:
    return png.zeros(size)


def animated(draw: random.Random) -> bytes:
    """Many frames, of which one is wanted."""
    kind = draw.choice(["PNG", "WEBP"])
    frames = [picture(number % 8) for number in range(draw.choice([2, 10, 60]))]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=draw.choice([0, 1, 100]))


def many_scans(draw: random.Random) -> bytes:
    """A JPEG with a scan repeated: each is a pass over all pixels."""
    data = encoded(picture(2, 600, 600), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * draw.choice([2, 50, 300, 3000]) + data[-2:]


def other_formats(draw: random.Random) -> bytes:
    """Sound images of kinds that are not taken."""
    kind = draw.choice(["GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "AVIF", "IM"])
    try:
        return encoded(picture(draw.randrange(8)), kind)
    except (OSError, KeyError):  # not in this Pillow
        return b"GIF89a" + draw.randbytes(100)


def _archive(name: str, text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr(zipfile.ZipInfo(name), text)  # which has a fixed date
    return file.getvalue()


def disguised(draw: random.Random) -> bytes:
    """No image at all: programs, documents, archives."""
    forms = [
        _archive("../../evil.txt", "x"),
        b"<!doctype html><script>alert(1)</script>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%touch trace) (w) file\nshowpage\n",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + draw.randbytes(200),
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + draw.randbytes(200),
        b"8BPS\0\1" + draw.randbytes(200),
        b"\x7fELF\2\1\1" + draw.randbytes(200),
        b"\x80\x04cposix\nsystem\n(X\x05\0\0\0touchtR.",
        b"\x1f\x8b\x08" + draw.randbytes(200),
        b"#!/bin/sh\ntouch trace\n",
        b"\0" * draw.randrange(1, 5000),
    ]
    return draw.choice(forms)


def huge_by_header(draw: random.Random) -> bytes:
    """Sizes that are declared, and not there."""
    width, height = draw.choice(
        [(2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (65_535, 65_535), (0, 0), (0, 10), (16_383, 16_383)]
    )
    kind = draw.choice(["png", "jpeg", "vp8x", "vp8", "vp8l"])
    if kind == "png":
        colour, depth = draw.choice([0, 2, 3, 4, 6]), draw.choice([1, 8, 16, 5])
        start = png.SIGNATURE + png.header(width, height, depth=depth, colour=colour, interlace=draw.randrange(3))
        return start + png.chunk(b"IDAT", zlib.compress(bytes(100))) + png.chunk(b"IEND", b"")
    data = bytearray(
        encoded(picture(3), "JPEG" if kind == "jpeg" else "WEBP", **({"lossless": True} if kind == "vp8l" else {}))
    )
    if kind == "jpeg":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        return bytes(data)
    if kind == "vp8":
        data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
        return bytes(data)
    if kind == "vp8l":
        data[21:25] = draw.randbytes(4)
        return bytes(data)
    canvas = struct.pack("<I", width & 0xFFFFFF)[:3] + struct.pack("<I", height & 0xFFFFFF)[:3]
    body = b"VP8X" + struct.pack("<I", 10) + bytes([draw.randrange(256), 0, 0, 0]) + canvas + bytes(data[12:])
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def bad_exif(draw: random.Random) -> bytes:
    """Orientations that there are not, directories that lead to themselves, counts beyond all data."""
    order = draw.choice("<>")
    entries = [
        struct.pack(
            order + "HHII", 0x0112, draw.choice([3, 4, 2, 12, 255]), 1, draw.choice([0, 9, 99, 2**31, 6 << 16, 6])
        )
    ]
    entries += [
        struct.pack(order + "HHII", draw.choice([0x8769, 0x8825, 0xA005, 0x014A, 0x927C]), 4, 1, 8),
        struct.pack(
            order + "HHII",
            draw.randrange(2**16),
            draw.randrange(20),
            draw.choice([2**32 - 1, 2**30, 0]),
            draw.randrange(2**32),
        ),
    ]
    draw.shuffle(entries)
    count = draw.choice([len(entries), 0xFFFF, 0])
    following = draw.choice([8, 0, 2**32 - 1])
    mark = b"II*\0" if order == "<" else b"MM\0*"
    block = mark + struct.pack(order + "IH", 8, count) + b"".join(entries) + struct.pack(order + "I", following)
    if draw.random() < 0.1:
        block = draw.randbytes(60)
    kind = draw.choice(SERVED)
    return encoded(picture(4), kind, exif=b"Exif\0\0" + block if kind == "JPEG" else block)


def bad_profile(draw: random.Random) -> bytes:
    """Colour profiles that are none, or claim gigantic tables."""
    profile = bytearray(128 + draw.randrange(400))
    profile[36:40] = b"acsp"
    profile[0:4] = struct.pack(">I", draw.choice([len(profile), 2**32 - 1, 0]))
    profile[12:24] = draw.choice([b"mntrRGB XYZ ", b"scnrCMYKLab ", b"\xff" * 12])
    profile[128:132] = struct.pack(">I", draw.choice([0, 1, 2**31]))
    profile = bytearray(draw.randbytes(len(profile))) if draw.random() < 0.3 else profile
    return encoded(picture(5), draw.choice(SERVED), icc_profile=bytes(profile))


def unusual_modes(draw: random.Random) -> bytes:
    """Sound images that are seldom seen: 16-bit, CMYK, palettes with transparency, one bit, interlaced."""
    image = picture(draw.randrange(8))
    grey = np.asarray(image.convert("L"))
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (Image.fromarray(grey.astype(np.uint16) * 257), "PNG", {}),
        (image.convert("CMYK"), "JPEG", {}),
        (image.convert("L"), "JPEG", {}),
        (image.convert("P"), "PNG", {"transparency": draw.randrange(256)}),
        (image.convert("P"), "PNG", {"transparency": draw.randbytes(draw.randrange(1, 256))}),
        (image.convert("LA"), "PNG", {}),
        (image.convert("RGBA"), "WEBP", {"lossless": True}),
        (image.convert("1"), "PNG", {}),
        (image, "PNG", {"transparency": (1, 2, 3)}),
        (image, "JPEG", {"subsampling": draw.randrange(3), "quality": draw.choice([1, 100])}),
        (image, "JPEG", {"restart_marker_blocks": 1}),
    ]
    image, kind, options = draw.choice(forms)
    return encoded(image, kind, **options)


def unusual_sizes(draw: random.Random) -> bytes:
    """One pixel, and strips of one."""
    size = draw.choice([(1, 1), (1, 20_000), (20_000, 1), (2, 3), (1, 300), (65_500, 2), (3, 16_000)])
    kind = draw.choice(["PNG", "JPEG"] if max(size) > 16_383 else list(SERVED))
    return encoded(Image.new("RGB", size, (9, 99, 199)), kind)


def polyglot(draw: random.Random) -> bytes:
    """An image that is something else as well: an archive, a page, a script."""
    page = b"<html><script>alert(document.domain)</script></html>"
    kind = draw.choice(SERVED)
    image = encoded(picture(6), kind)
    forms = [
        image + _archive("evil.html", "<script>alert(1)</script>" * 20),
        image + page,
        image + b"<?php system($_GET[0]); ?>",
    ]
    if kind == "PNG":
        forms.append(png.with_chunk(image, png.chunk(b"tEXt", b"Comment\0" + page)))
    elif kind == "JPEG":
        forms.append(encoded(picture(6), "JPEG", comment=page))
        forms.append(b"\xff\xd8\xff\xfe" + struct.pack(">H", len(page) + 2) + page + image[2:])
    return draw.choice(forms)


def bad_chunks(draw: random.Random) -> bytes:
    """PNG whose chunks are in no order, doubled, missing, or wrongly summed; filters that there are not."""
    image = encoded(picture(7), draw.choice(["PNG"]))
    place, parts = len(png.SIGNATURE), []
    while place < len(image):
        size = 12 + struct.unpack(">I", image[place : place + 4])[0]
        parts.append(image[place : place + size])
        place += size
    row = bytes([draw.choice([0, 5, 9, 255])]) + draw.randbytes(3 * 48)
    forms = [
        [*parts[:1], *parts],
        parts[:1] + parts[-1:],
        draw.sample(parts, len(parts)),
        [part[:-4] + draw.randbytes(4) for part in parts],
        [parts[0], png.chunk(b"IDAT", zlib.compress(row * 40)), parts[-1]],
        [parts[0], png.chunk(b"IDAT", zlib.compress(row * 4000)), parts[-1]],
        [parts[0], png.chunk(b"IDAT", draw.randbytes(500)), parts[-1]],
        [parts[0], png.chunk(b"PLTE", draw.randbytes(draw.randrange(3000))), *parts[1:]],
        [
            parts[0],
            png.chunk(b"acTL", struct.pack(">II", 2**31, 0)),
            png.chunk(b"fcTL", draw.randbytes(26)),
            *parts[1:],
        ],
        [parts[0], *[png.chunk(b"IDAT", b"")] * 5000, *parts[1:]],
        [struct.pack(">I", 2**31) + parts[0][4:], *parts[1:]],
    ]
    return png.SIGNATURE + b"".join(draw.choice(forms))


def bad_segments(draw: random.Random) -> bytes:
    """JPEG whose tables are wrong, too long, or missing, and whose markers stand where none may."""
    data = encoded(picture(8), "JPEG", progressive=draw.random() < 0.5)
    marker = draw.choice([0xC4, 0xDB, 0xDA, 0xC0, 0xDD, 0xDC, 0xCC, 0xE1, 0xEE, 0xD0])
    segment = (
        bytes([0xFF, marker])
        + struct.pack(">H", draw.choice([0, 1, 2, 67, 0xFFFF]))
        + draw.randbytes(draw.randrange(80))
    )
    places = [2, data.index(b"\xff\xdb"), data.rindex(b"\xff\xda"), len(data) - 2, draw.randrange(2, len(data))]
    place = draw.choice(places)
    return data[:place] + segment * draw.choice([1, 1, 100]) + data[place:]


def tiny(draw: random.Random) -> bytes:
    """Nothing, or next to nothing."""
    return draw.choice(
        [b"", b"", b"\xff\xd8\xff", png.SIGNATURE, b"RIFF\0\0\0\0WEBP", draw.randbytes(draw.randrange(1, 12))]
    )


IMAGES: Mapping[str, Make] = MappingProxyType(
    {
        make.__name__: make
        for make in (
            good,
            truncated,
            flipped,
            spliced,
            magic_and_noise,
            bomb,
            bomb_within_limits,
            bomb_in_text,
            animated,
            many_scans,
            other_formats,
            disguised,
            huge_by_header,
            bad_exif,
            bad_profile,
            unusual_modes,
            unusual_sizes,
            polyglot,
            bad_chunks,
            bad_segments,
            tiny,
        )
    }
)
"""Each kind, by name."""
