"""The direction of imports, and what every file of the product keeps to."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from flows.config import PipelineConfig

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "tasks", "lm_core", "data_contracts")


def test_imports_point_one_way():
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists() and not shutil.which("lint-imports"):
        pytest.skip("import-linter is not installed (extra dev)")
    done = subprocess.run([str(program)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "lm_core").rglob("*.py")), ids=lambda path: path.stem)
def test_lm_core_neither_prints_nor_reads_the_environment(path):
    tree = ast.parse(path.read_text())
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "print" not in names
    if path.name != "runtime.py":
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not attributes & {"environ", "getenv"}, "only lm_core/runtime.py reads the environment"


def test_no_pickle_anywhere():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            assert not imported & {"pickle", "cloudpickle", "dill", "joblib"}, path


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    nested = [f.annotation for f in model.model_fields.values()]
    return [model] + [
        m for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel) for m in _models(kind)
    ]


def test_every_setting_is_described():
    for model in _models(PipelineConfig):
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
