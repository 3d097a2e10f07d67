"""What is let go of at the end of a ``with`` block."""

from typing import Self


class Closing:
    """Base of what has a ``close``: a ``with`` block calls it at its end."""

    def close(self) -> None:
        """Let go of what is held; closing twice is harmless."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
