"""Images listed in tables: Parquet with Hugging Face image columns, and CSV files of paths or addresses."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.data.sources import download
from pipeline.data.sources.folders import with_test
from pipeline.data.sources.listing import file_digest, remote_file
from pipeline.data.sources.source import Entry, LocalFile, Progress, Readable, Source, Unreachable, distinct
from pipeline.redact import redact

if TYPE_CHECKING:  # PyArrow takes a while to load, and most sources are no tables
    import pyarrow as pa
    import pyarrow.parquet as pq

_DOMAIN_COLUMNS = ("domain", "label")
_BATCH = 64
_FETCHES = 16
_ATTEMPTS = 2
_TEST = {"test", "testing", "val", "validation", "valid", "eval", "dev"}
_TRAIN = {"", "train", "training"}
_DELIMITERS = ",;\t|"


def is_parquet(text: str) -> bool:
    return download.without_query(text).lower().endswith(".parquet")


def is_csv(text: str) -> bool:
    return download.without_query(text).lower().endswith((".csv", ".tsv"))


def open_parquet(uris: list[str], test_fraction: float, downloads: Path) -> Source:
    """Open two Parquet files, one per domain, or one with a column ``domain`` (or ``label``).

    The column ``image`` is ``struct<bytes, path>``; ``mask`` (of the same type) and ``split`` are optional. Domains are
    ``A`` and ``B`` (or 0 and 1), or any two values, the first in alphabetical order being A.

    Raises:
        BadInput: not Parquet, or a column is missing.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agit-unpack-")))
        rows: list[_Row] = []
        for number, uri in enumerate(uris):
            path = _local(uri, folder, downloads)
            domain = None if len(uris) == 1 else "AB"[number]
            rows += _parquet_rows(path, uri, domain, folder / str(number))
        source = _source(",".join(uris), rows, test_fraction)
        source.resources = stack.pop_all()
        return source


def shards_of(uris: list[str]) -> list[str]:
    """The Parquet files of images among a folder's files, i.e. all except ``metadata.parquet``."""
    return [uri for uri in uris if is_parquet(uri) and not storage.name(uri).lower().startswith("metadata.")]


def open_shards(folder: str, uris: list[str], test_fraction: float, downloads: Path) -> Source:
    """Open a folder of Parquet files such as ``train-00000-of-00002.parquet``, with a column ``domain`` or ``label``.

    A file contains test images if its name or its folder's begins with test or val, unless it has a column ``split``.
    Unreadable files are left out and listed.

    Raises:
        BadInput: no file is Parquet with these columns, or there are not exactly two domains.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agit-unpack-")))
        rows: list[_Row] = []
        left: list[tuple[str, str]] = []
        first: BadInput | None = None
        for number, uri in enumerate(uris):
            path = _local(uri, scratch, downloads)
            kinds = (re.split(r"[^a-z]", part.lower())[0] for part in uri[len(folder) :].split("/"))
            split = next((kind for kind in kinds if kind in _TEST), "")
            try:
                rows += list(_parquet_rows(path, uri, None, scratch / str(number), split))
            except BadInput as error:
                first = first or error
                left.append((uri[len(folder) :].strip("/"), str(error)))
        if first is not None and not rows:
            raise first
        source = _source(folder, rows, test_fraction)
        source.left_out += left
        source.resources = stack.pop_all()
        return source


def open_csv(
    uri: str, test_fraction: float, downloads: Path, report: Progress = lambda event: None
) -> Source:
    """Open a CSV table with the columns ``image`` and ``domain`` (or ``label``), and optionally ``split`` and ``mask``,
    separated by commas, semicolons, tabs or bars.

    Images and masks are paths (relative to the table's folder), ``s3://`` URIs or http(s) addresses. Those that cannot
    be fetched are quarantined; timeouts are short, because long lists contain dead addresses.

    Args:
        report: called now and then with the number of lines that have been looked up.

    Raises:
        BadInput: there is no such file, it is not a table, or it lacks a column.
    """
    text = _text(uri, downloads).lstrip("\r\n")
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        columns = [name.strip().lower() for name in table.fieldnames or []]
        table.fieldnames = columns
        lines, left = [], []
        for line in table:
            # of a line with more fields than the header, csv collects the rest under None
            if any(map(str.strip, line.pop(None, []))):  # type: ignore[call-overload]
                reason = "has more fields than the header; put texts that hold the delimiter into quotes"
                left.append((f"line {table.line_num}", reason))
            else:
                lines.append({k: (v or "").strip() for k, v in line.items()})
    except csv.Error as error:
        raise BadInput(f"{uri} is not a table ({error} in line {table.line_num + 1})") from None
    if "image" not in columns or not set(_DOMAIN_COLUMNS) & set(columns):
        found = ", ".join(columns[:8]) or "none"
        raise BadInput(f"{uri} needs a header with the columns 'image' and 'domain'; it has: {found}")
    base = uri.rsplit("/", 1)[0] if "/" in uri else "."
    files = _Files(base, downloads)
    rows: list[_Row] = []
    with ThreadPoolExecutor(_FETCHES) as pool:
        for row in pool.map(lambda line: _csv_row(line, files), lines):
            rows.append(row)
            report({"message": f"looking up {uri}", "done": len(rows), "total": len(lines)})
    remote = any(row.image.remote for row in rows)
    source = _source(uri, rows, test_fraction)
    source.remote = remote
    source.left_out += left
    return source


def _delimiter(text: str) -> str:
    """The delimiter that yields the most known columns in the first line."""
    header = text.partition("\n")[0].lower()
    return max(_DELIMITERS, key=lambda mark: len({"image", *_DOMAIN_COLUMNS} & set(_columns(header, mark))))


def _columns(header: str, mark: str) -> list[str]:
    return [name.strip().strip('"') for name in header.split(mark)]


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    domain: str
    split: str
    image: Readable
    mask: Readable | None
    digest: str


def _source(description: str, rows: list[_Row], test_fraction: float) -> Source:
    left = [(row.name, problem) for row in rows if (problem := _unassigned(row))]
    rows = [row for row in rows if not _unassigned(row)]
    values = sorted({row.domain for row in rows}, key=lambda value: (value.casefold(), value))
    if len(values) != 2:
        shown = ", ".join(values[:5]) or "none"
        raise BadInput(f"{description} must hold images of two domains, not {len(values)} ({shown})")
    letters = dict(zip(values, "AB", strict=True))
    splits: dict[str, list[Entry]] = {f"train{d}": [] for d in "AB"}
    for row in rows:
        split = ("test" if row.split.lower() in _TEST else "train") + letters[row.domain]
        splits.setdefault(split, []).append(Entry(row.name, row.image, row.mask, row.digest))
    for split, entries in splits.items():
        splits[split] = sorted(distinct(entries), key=lambda entry: entry.name)
    source = Source(description, with_test(splits, test_fraction))
    if not set(values) <= {"A", "B", "a", "b", "0", "1"}:
        source.names = {letter.lower(): value for value, letter in letters.items()}
    source.left_out = left
    return source


def _unassigned(row: _Row) -> str | None:
    """Reason why a row belongs to no split, or None."""
    if not row.domain:
        return "names no domain"
    if row.split.lower() not in _TRAIN | _TEST:
        return f"its split '{row.split}' is neither train nor test"
    return None


def _parquet_rows(
    path: Path, called: str, domain: str | None, folder: Path, split: str = ""
) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{called} is not a Parquet file ({error})") from None
    schema = file.schema_arrow
    known = {"image", "mask", "split", *_DOMAIN_COLUMNS}
    if twice := sorted(name for name in known if schema.names.count(name) > 1):
        raise BadInput(f"{called} has two columns '{twice[0]}'; remove or rename one")
    column = next((name for name in _DOMAIN_COLUMNS if name in schema.names), None)
    if "image" not in schema.names or not is_image(schema.field("image").type):
        raise BadInput(
            f"{called} has no column 'image' of struct<bytes: binary, path: string>; it has "
            + ", ".join(f"{field.name} ({field.type})" for field in schema)
        )
    if "mask" in schema.names and not is_image(schema.field("mask").type):
        raise BadInput(
            f"{called} has a column 'mask' of {schema.field('mask').type}; it must be struct<bytes, path>, as 'image'"
        )
    if domain is None and column is None:
        raise BadInput(
            f"{called} has no column 'domain'; add one, or give two files as 'a.parquet,b.parquet'"
        )
    for name, holds in ((column, "one text or number"), ("split", "the text train or test")):
        if name in schema.names and not _is_plain(schema.field(name).type, numbers=name != "split"):
            raise BadInput(
                f"{called} has a column '{name}' of {schema.field(name).type}; each row must hold {holds}"
            )
    wanted = [n for n in ("image", "mask", "split", column) if n and n in schema.names]
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for batch in _batches(file, wanted, called):
        columns = [values(batch.column(name)) for name in wanted]
        for row in zip(*columns, strict=True):
            item = dict(zip(wanted, row, strict=True))
            number += 1
            image, digest = _unpacked(item["image"], folder / f"{number:09d}", path.parent)
            mask, mask_digest = None, ""
            if item.get("mask"):
                mask, mask_digest = _unpacked(item["mask"], folder / f"{number:09d}-mask", path.parent)
            yield _Row(
                name=str((item["image"] or {}).get("path") or f"row-{number:09d}"),
                domain=domain or _text_of(item[str(column)]),
                split=_text_of(item.get("split")) or split,
                image=image,
                mask=mask,
                digest=f"{digest}+{mask_digest}" if mask else digest,
            )


def _text_of(value: Any) -> str:
    return "" if value is None else str(value)


def values(array: pa.Array) -> list[Any]:
    """The values as Python's; bytes of texts that are not UTF-8 appear as ``\\xe9``, as in the names of files."""
    import pyarrow as pa

    try:
        return list(array.to_pylist())
    except (pa.ArrowException, ValueError):
        if pa.types.is_struct(array.type):
            names = [field.name for field in array.type]
            parts = zip(*map(values, array.flatten()), strict=True)
            return [dict(zip(names, row, strict=True)) for row in parts]
        raw = array.cast(pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary())
        return [None if data is None else data.decode(errors="backslashreplace") for data in raw.to_pylist()]


def _batches(file: pq.ParquetFile, columns: list[str], called: str) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    try:
        yield from file.iter_batches(_BATCH, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{called} is damaged ({str(error).splitlines()[0]}); fetch it again") from None


def _is_plain(type_: pa.DataType, numbers: bool) -> bool:
    """Whether a column holds one text, or where allowed one number, in each row."""
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return not pa.types.is_nested(type_) and (
        numbers or pa.types.is_null(type_) or any(word in str(type_) for word in ("string", "binary"))
    )


def is_image(type_: pa.DataType) -> bool:
    """Whether a column of this type holds images by the Hugging Face convention; ``path`` may be missing."""
    import pyarrow as pa

    if not pa.types.is_struct(type_) or type_.get_field_index("bytes") < 0:
        return False
    data = type_.field("bytes").type
    path = type_.field("path").type if type_.get_field_index("path") >= 0 else pa.string()
    blob = pa.types.is_binary(data) or pa.types.is_large_binary(data) or pa.types.is_fixed_size_binary(data)
    # the type of a column without any bytes is null
    return (blob or pa.types.is_null(data) or str(data) == "binary_view") and (
        pa.types.is_string(path) or pa.types.is_large_string(path) or pa.types.is_null(path)
    )


def _unpacked(value: Any, target: Path, base: Path) -> tuple[Readable, str]:
    """Handle and digest of a struct<bytes, path>; without bytes, its path relative to the table's folder is used."""
    data = (value or {}).get("bytes")
    if data is not None:
        target.write_bytes(data)
        return LocalFile(str(target)), hashlib.sha256(data).hexdigest()
    path = (value or {}).get("path")
    if not path:
        return Unreachable("the row holds neither bytes nor a path"), "empty"
    if "\0" in path:
        return Unreachable("the row's path holds a NUL character"), "empty"
    return LocalFile(str(base / path)), file_digest(base / path)


class _Files:
    """Resolves the files that a table refers to; thread-safe."""

    def __init__(self, base: str, downloads: Path) -> None:
        self._base = base
        self._downloads = downloads
        self._silent: set[str] = set()

    def find(self, reference: str) -> tuple[Readable, str]:
        """Handle of a file and the identifier of its contents."""
        base = self._base
        if download.is_url(base) and not download.is_url(reference) and not storage.is_remote(reference):
            reference = f"{base}/{reference}"
        if not reference:
            return Unreachable("the line names no image"), "empty"
        if "\0" in reference:
            return Unreachable("the line's path holds a NUL character"), "empty"
        if download.is_url(reference):
            return self._fetched(reference)
        reference = reference.removeprefix("file://")
        if "://" in reference and not reference.startswith("s3://"):
            scheme = reference.partition("://")[0]
            return Unreachable(f"'{scheme}://' is not read; give a path, s3:// or http(s)://"), "empty"
        absolute = storage.is_remote(reference) or PurePosixPath(reference).is_absolute()
        where = reference if absolute else storage.join(base, reference)
        if storage.is_remote(where):
            return remote_file(where)
        path = storage.local_path(where)
        if "\\" in where and not path.exists():  # a list from Windows
            path = storage.local_path(where.replace("\\", "/"))
        return LocalFile(str(path)), file_digest(path)

    def _fetched(self, address: str) -> tuple[Readable, str]:
        host = address.partition("://")[2].partition("/")[0]
        attempts = 1 if host in self._silent else _ATTEMPTS
        try:
            path = download.fetch(address, self._downloads, attempts=attempts)
        except (BadInput, RunFailed) as error:
            if not isinstance(error, download.NotThere):
                self._silent.add(host)
            return Unreachable(str(error)), f"unreachable:{hashlib.sha256(address.encode()).hexdigest()}"
        self._silent.discard(host)
        return LocalFile(str(path)), file_digest(path)


def _csv_row(line: dict[str, str], files: _Files) -> _Row:
    image, digest = files.find(line.get("image", ""))
    mask, mask_digest = None, ""
    if line.get("mask"):
        mask, mask_digest = files.find(line["mask"])
    return _Row(
        # redacted: a manifest must not contain signed links
        name=redact(line.get("image", "")) or "(empty)",
        domain=next((line[name] for name in _DOMAIN_COLUMNS if name in line), ""),
        split=line.get("split", ""),
        image=image,
        mask=mask,
        digest=f"{digest}+{mask_digest}" if mask else digest,
    )


def _local(uri: str, folder: Path, downloads: Path) -> Path:
    """Local path of a file; downloads it if necessary."""
    if download.is_url(uri):
        return download.fetch(uri, downloads)
    if storage.is_remote(uri):
        path = folder / storage.name(uri)
        try:
            storage.download_file(uri, path)
        except FileNotFoundError:
            raise BadInput(f"there is no file {uri}; correct data.source") from None
        return path
    path = storage.local_path(uri)
    if not path.is_file():
        raise BadInput(f"there is no file {uri}; correct data.source")
    return path


def _text(uri: str, downloads: Path) -> str:
    try:
        fetched = download.is_url(uri)
        data = download.fetch(uri, downloads).read_bytes() if fetched else storage.read_bytes(uri)
        # UTF-16 is what spreadsheets export as "Unicode text"
        return data.decode(
            "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        )
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"there is no file {uri}; correct data.source") from None
    except UnicodeDecodeError:
        raise BadInput(f"{uri} is not a text file in UTF-8") from None
