"""Figures are counted under names that files have; MLflow takes few characters, and refuses a whole batch for one."""

import pytest
from mlflow.utils.validation import _validate_metric_name

from tasks.tracking import metric_name


@pytest.mark.parametrize(
    "name",
    [
        "by_source.glob*?[a]",
        "by_source./etc/passwd",
        "by_source.a/../b",
        "x\ny",
        'it\'s "so"',
        "z" * 999,
        "中文",
        "a\x00b",
    ],
)
def test_any_name_becomes_one_that_mlflow_takes(name):
    _validate_metric_name(metric_name(name))


def test_usual_names_stay_as_they_are():
    assert metric_name("by_source.python-docs 3.11: re") == "by_source.python-docs 3.11: re"
