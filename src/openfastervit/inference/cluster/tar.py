"""A WebDataset shard read in one go, from a file that need not be on this machine's disk."""

import errno
import re
import tarfile
from collections.abc import Iterator
from typing import IO

from openfastervit.data.images import SUFFIXES, ImageError

MAX_BYTES = 1 << 30
"""The largest file that is read: an image's header cannot tell more pixels than are decoded."""


def read_tar(file: IO[bytes]) -> Iterator[tuple[str, bytes | ImageError]]:
    """Key and file of each image, in order, or why it is left out.

    As in WebDataset, files that follow each other with the same path up to the first dot of the name are one sample,
    and that path is its key. Labels are not needed, and not read. Where the file is damaged, the images before that are
    given, and then the damage, under an empty key.

    Args:
        file: A tar file, not compressed, that can be read and searched.

    Raises:
        OSError: If it cannot be read.
    """
    key, image = "", ""
    count = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them
                count += 1
                if member.issparse() or member.size < 0:
                    raise tarfile.ReadError(f"{member.name} cannot be read in place")
                folder, slash, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if not (member.isreg() and stem and dot) or re.match(r"__[^/]*__($|/)", member.name):
                    continue  # as WebDataset does
                if f"{folder}{slash}{stem}" != key:
                    key, image = f"{folder}{slash}{stem}", ""
                if f".{extension.lower()}" not in SUFFIXES:
                    continue
                if image:
                    yield member.name, ImageError(f"its sample has another image, {image}; keep one")
                    continue
                image = member.name
                yield key, _content(file, member)
        # tarfile takes a damaged header for the end, unless it is the first.
        file.seek(archive.offset)
        rest = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # numbers in a header may be anything
        yield "", _damage(count, str(error))
        return
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place that a header tells, and no file has
            raise
        yield "", _damage(count, str(error))
        return
    if rest != bytes(tarfile.BLOCKSIZE):
        yield "", _damage(count, "a damaged header" if rest else "no mark of its end: it may be cut off")


def _damage(count: int, what: str) -> ImageError:
    where = f"after {count} files" if count else "it must be a plain tar file, not compressed"
    return ImageError(f"the shard is damaged: {where} ({what}); write or fetch it again")


def _content(file: IO[bytes], member: tarfile.TarInfo) -> bytes | ImageError:
    if member.size > MAX_BYTES:
        return ImageError(f"its file has {member.size} bytes, more than the limit of {MAX_BYTES}")
    file.seek(member.offset_data)
    content = file.read(member.size)
    while len(content) < member.size and (more := file.read(member.size - len(content))):
        content += more
    return content if len(content) == member.size else ImageError("its shard ends before it does")
