"""API keys: a file of them, and whether a request brings one."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

MIN_LENGTH = 16
Headers = Iterable[tuple[bytes, bytes]]


class Keys:
    """The keys that a server takes. Digests of them are kept, not the keys.

    Args:
        keys: At least one.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Keys":
        """Keys from a file: one a line; empty lines, and those that begin with ``#``, are passed over.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it holds no key, or one that is too short or not plain text. The key itself is not told.
        """
        try:
            lines = Path(path).read_text("ascii").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: keys are plain text (ASCII), as HTTP headers are") from error
        keys = []
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            if not all("!" <= letter <= "~" for letter in line):
                raise ValueError(f"{path}, line {number}: a key has no spaces or control characters; one key a line")
            if len(line) < MIN_LENGTH:
                raise ValueError(
                    f"{path}, line {number}: a key of {len(line)} characters can be guessed; take at least "
                    f"{MIN_LENGTH}, for instance from `openssl rand -hex 32`"
                )
            keys.append(line)
        if not keys:
            raise ValueError(f"{path} holds no key; write one a line")
        return cls(keys)

    def allow(self, headers: Headers) -> bool:
        """Whether a request with these headers brings a key: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.

        What it takes does not depend on how much of a key is right, nor on which one it is.
        """
        allowed = False
        for candidate in _candidates(headers):
            digest = _digest(candidate)
            for known in self._digests:
                allowed |= hmac.compare_digest(digest, known)
        return allowed


def _candidates(headers: Headers) -> list[bytes]:
    found = []
    for name, value in headers:
        if name.lower() == b"x-api-key":
            found.append(value.strip())
        elif name.lower() == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.append(key.strip())
    return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
