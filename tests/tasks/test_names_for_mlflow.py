"""Figures are counted under names that files have; MLflow takes few characters, and refuses a whole batch for one."""

import pytest
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from tasks.tracking import name_for_mlflow


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
        "task.hub.rename.answer|####",
    ],
)
def test_any_name_becomes_one_that_mlflow_takes(name):
    _validate_metric_name(name_for_mlflow(name))
    _validate_param_name(name_for_mlflow(name))


def test_usual_names_stay_as_they_are():
    assert name_for_mlflow("by_source.python-docs 3.11: re") == "by_source.python-docs 3.11: re"
