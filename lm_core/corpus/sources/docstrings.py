"""Documentation strings of Python source files, by `ast`: nothing is ever imported or run.

Runs in worker processes, so it imports nothing but the standard library and `lm_core.corpus.text`.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_core.corpus.text import Document, Rejected, canonical

MAX_FILE_BYTES = 5_000_000

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Package:
    """What a worker needs to read one package.

    Attributes:
        files: (path relative to root, as installed; name of the module).
        max_bytes: stop once that much text was found.
    """

    name: str
    version: str | None
    licence: str | None
    root: Path
    files: tuple[tuple[str, str], ...]
    max_bytes: int


def read_package(package: Package) -> tuple[list[Document], list[Rejected]]:
    """Docstrings of one package, up to its share of bytes.

    Files come in the order of a hash of their name: a share cut short is then a sample of the whole package, the
    same on every machine, and the files beyond it are never parsed.
    """
    # A tree holds no cycles, but its many nodes make the collector look for some: a fifth of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _read(package)
    finally:
        if was_enabled:
            gc.enable()


def _read(package: Package) -> tuple[list[Document], list[Rejected]]:
    documents: list[Document] = []
    rejected: list[Rejected] = []
    seen: dict[str, int] = {}
    num_bytes = 0
    for name, module in sorted(package.files, key=lambda file: hashlib.sha256(file[0].encode()).digest()):
        tree = _parse(package, name, rejected)
        if tree is None:
            continue
        for document in _documents(tree, module, package, seen):
            documents.append(document)
            num_bytes += len(document.text.encode())
        if num_bytes >= package.max_bytes:
            break
    return documents, rejected


def _parse(package: Package, name: str, rejected: list[Rejected]) -> ast.Module | None:
    try:
        path = package.root / name
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        source = path.read_bytes()
        if b'"' not in source and b"'" not in source:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            return ast.parse(source)
    except FileNotFoundError:
        return None  # listed by the installer, removed since
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        rejected.append(Rejected(package.name, name, "not_parsed", f"{type(error).__name__}: {error}"[:300]))
        return None


def _documents(tree: ast.Module, module: str, package: Package, seen: dict[str, int]) -> Iterator[Document]:
    for node, qualname in _walk(tree):
        docstring = ast.get_docstring(node, clean=False)
        if not docstring:
            continue
        text = canonical(inspect.cleandoc(docstring))
        if not text:
            continue
        key = f"{module}:{qualname}" if qualname else module
        seen[key] = count = seen.get(key, 0) + 1
        if count > 1:  # an overload, or a definition under `if`
            key = f"{key}#{count}"
        yield Document(
            package.name, key, "docstring", text, _title(node, module, qualname), package.licence, package.version
        )


def _walk(tree: ast.Module) -> Iterator[tuple[_Documented, str]]:
    """Module, classes and functions in order of appearance, with their qualified names; not those within functions."""
    yield tree, ""
    pending: list[tuple[ast.AST, str]] = [(tree, "")]
    while pending:
        parent, prefix = pending.pop()
        below: list[tuple[ast.AST, str]] = []
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                qualname = f"{prefix}.{node.name}" if prefix else node.name
                yield node, qualname
                if isinstance(node, ast.ClassDef):
                    below.append((node, qualname))
            elif isinstance(node, ast.If | ast.Try):
                below.append((node, prefix))
        pending.extend(reversed(below))


def _title(node: _Documented, module: str, qualname: str) -> str:
    """The qualified name, with the signature of a function."""
    if not qualname:
        return module
    title = f"{module}.{qualname}"
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return title
    try:
        return canonical(f"{title}({ast.unparse(node.args)})")[:500]
    except (RecursionError, ValueError):
        return title
