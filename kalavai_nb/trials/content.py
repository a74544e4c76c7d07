"""A pickled value that is kept: in memory where it is small, in a file where it is large."""

from __future__ import annotations

import mmap
import secrets
from dataclasses import dataclass
from typing import Any

from kalavai_nb.blobs import Blob, Packed, frames_of, load, load_bytes


@dataclass(frozen=True)
class Content:
    """The frames of a value as one piece of bytes, or the file that has them."""

    sizes: tuple[int, ...]
    inline: bytes = b""
    file: str = ""

    def load(self) -> Any:
        """The value. Raises what rebuilding it raises, and OSError where its file is gone."""
        return load(self.file, self.sizes) if self.file else load_bytes(self.inline, self.sizes)

    def packed(self) -> Packed:
        """The same to send, under a name of its own."""
        if self.file:
            with open(self.file, "rb") as file:
                whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        else:
            whole = memoryview(self.inline)
        return Packed(Blob(secrets.token_hex(16), self.sizes), frames_of(whole, self.sizes), set())
