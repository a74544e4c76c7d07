"""All that owners have published here, looked at again and again, with each file read once for each time it changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kalavai_nb.registry.entry import remove_entry
from kalavai_nb.registry.folder import Folder, Signature, directory
from kalavai_nb.registry.published import Published, parse

MOST_FILE_BYTES = 4 << 20
MOST_FILES = 256
# whoever fills the directory with rubbish does not fill the log
MOST_SENTENCES = 200
ENTRY_FILE = re.compile(r"([A-Za-z0-9_]{1,64}-[0-9]{1,10}-[0-9a-f]{4})\.json")
INBOX = re.compile(r"[A-Za-z0-9_]{1,64}-[0-9]{1,10}-[0-9a-f]{4}\.inbox")


@dataclass(frozen=True)
class _Read:
    """What came of reading a file: ``published`` is None where it is ignored."""

    signature: Signature
    published: Published | None


class Reader:
    """Gives what is published now, by the names of entries. ``say`` gets a sentence, once, for each that is ignored.

    Used by one thread at a time.
    """

    def __init__(self, say: Callable[[str], None], path: Path | None = None) -> None:
        self._say, self._path = say, path
        self._read: dict[str, _Read] = {}
        self._said: set[tuple[str, str]] = set()
        self.files_read = 0

    @property
    def path(self) -> Path:
        """The directory that is looked at."""
        return self._path or directory()

    def look(self) -> dict[str, Published]:
        """What there is to see. Never raises: what cannot be read is ignored."""
        try:
            with Folder(self.path) as folder:
                names = self._names(folder)
                now = {name: read for name in names if (read := self._one(folder, name))}
        except OSError as error:
            self._read = {}
            # no pool was ever opened here
            if not isinstance(error, FileNotFoundError):
                self._ignore("", f"pools cannot be shown: {error}")
            return {}
        self._read = now
        return {name: read.published for name, read in now.items() if read.published}

    def remove(self, name: str) -> None:
        """Take away the entry of an owner that is no more."""
        try:
            with Folder(self.path) as folder:
                remove_entry(folder, name)
        except OSError as error:
            self._ignore(
                f"{name}.json", f"the entry {name!r} of a notebook that has ended cannot be removed: {_reason(error)}"
            )

    def _names(self, folder: Folder) -> list[str]:
        names, present = [], sorted(folder.names())
        for name in present:
            if match := ENTRY_FILE.fullmatch(name):
                names.append(match[1])
            elif not name.startswith(".") and not INBOX.fullmatch(name):
                self._ignore(name, f"{name!r} in {str(self.path)!r} is ignored: its name is none of a pool's file")
        if len(names) > MOST_FILES:
            self._ignore("", f"there are {len(names)} files of pools in {str(self.path)!r}: {MOST_FILES} are shown")
            # those of owners that live are written each second; of the others, some are taken away at each look
            names.sort(key=lambda name: _written(folder, f"{name}.json"), reverse=True)
        self._said = {(name, sentence) for name, sentence in self._said if not name or name in present}
        return names[:MOST_FILES]

    def _one(self, folder: Folder, name: str) -> _Read | None:
        """What is in this file; read only if it is another than before. None where it is gone."""
        file, before = f"{name}.json", self._read.get(name)
        signature = Signature(0, 0, 0)
        try:
            signature = folder.sign(file)
            if before and before.signature == signature:
                return before
            self.files_read += 1
            content, signature = folder.read(file, MOST_FILE_BYTES)
            return _Read(signature, parse(content, signature.mtime_ns / 1e9))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._ignore(file, f"the file {file!r} in {str(self.path)!r} is ignored: it {_reason(error)}")
            return _Read(signature, None)

    def _ignore(self, name: str, sentence: str) -> None:
        if (name, sentence) not in self._said and len(self._said) < MOST_SENTENCES:
            self._said.add((name, sentence))
            self._say(sentence)


def _written(folder: Folder, file: str) -> int:
    try:
        return folder.sign(file).mtime_ns
    except OSError:
        return 0


def _reason(error: Exception) -> str:
    """What is wrong with it, as the rest of a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return str(error)
