"""Headers of a damaged tar: ``tarfile`` skips unreadable ones without a word, or takes them for the archive's end."""

from __future__ import annotations

import tarfile
from typing import Self

_ABOUT_THE_NEXT = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}
_INVALID: type[tarfile.HeaderError] = tarfile.InvalidHeaderError  # type: ignore[attr-defined]
_SUBSEQUENT: type[tarfile.HeaderError] = tarfile.SubsequentHeaderError  # type: ignore[attr-defined]
_LONGEST_HEADER = 1 << 20


class TarHeaders:
    """Record of a tar's damaged headers, which ``tarfile`` itself skips, and of a missing end."""

    def __init__(self) -> None:
        self.damage: list[tuple[str, str]] = []
        self.previous = "nothing"
        self._zeros = 0

    def member(self) -> type[tarfile.TarInfo]:
        """The class for ``tarfile.open(tarinfo=...)``."""
        headers = self

        class Member(tarfile.TarInfo):
            @classmethod
            def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
                try:
                    member = super().frombuf(buf, encoding, errors)
                    # ``tarfile`` would read such a header into memory, whatever its size
                    if member.type in _ABOUT_THE_NEXT and member.size > _LONGEST_HEADER:
                        raise _INVALID(f"a name or header of {member.size} bytes")
                except tarfile.HeaderError as error:
                    headers.failed(buf, error)
                    raise
                headers.found()
                return member

            @classmethod
            def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
                try:
                    return super().fromtarfile(tarfile_)
                except _SUBSEQUENT as error:
                    # of a header that follows a long name: skipped like any other
                    raise _INVALID(str(error)) from None

        return Member

    def found(self) -> None:
        """Record a header that is in order."""
        if self.previous == "zeros" and self._zeros == 1:  # the end of an archive is two blocks of zeros
            self.damage.append(("a part of the archive", "cannot be read: zeros in place of a header"))
        self.previous, self._zeros = "member", 0

    def failed(self, buf: bytes | bytearray, error: tarfile.HeaderError) -> None:
        """Record a block that is not a header.

        Raises:
            tarfile.ReadError: it is the first one: the file is not a tar.
        """
        found = "end" if not buf else "zeros" if not buf.strip(b"\0") else "damage"
        if found == "damage" and self.previous == "nothing":
            raise tarfile.ReadError(str(error)) from None
        if found == "damage" and self.previous != "damage":
            name = buf[:100].partition(b"\0")[0].decode(errors="backslashreplace")
            known = name and buf[257:262] == b"ustar" and buf[156:157] in {b"0", b"\0"}
            self.damage.append((name if known else "a part of the archive", f"cannot be read: {error}"))
        if found == "end" and self.previous == "member":
            self.damage.append(("the end of the archive", "is missing: the archive may have been cut short"))
        self.previous = found
        self._zeros += found == "zeros"
