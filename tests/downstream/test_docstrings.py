from lm_core.downstream.docstrings import Parameter, first_sentence, parameters, plain, split_summary

GOOGLE = """Join the parts.

Args:
    parts (list[str]): What to join. Never empty.
    glue: Stands between
        two parts.
    **options: Passed on.

Returns:
    The text.
"""
NUMPY = """Join the parts.

Parameters
----------
parts : list of str
    What to join.
glue, end : str
    Two at once are left out.
axis
    Axis along which to join. The last by default.

Returns
-------
out : str
    The text.
"""
SPHINX = """Join the parts.

:param parts: What to join.
:param str glue: Stands between
    two parts.
:returns: the text
"""


def test_google_parameters():
    assert parameters(GOOGLE) == [
        Parameter("parts", "What to join."),
        Parameter("glue", "Stands between two parts."),
        Parameter("options", "Passed on."),
    ]


def test_numpy_parameters_end_at_the_next_section():
    assert parameters(NUMPY) == [
        Parameter("parts", "What to join."),
        Parameter("axis", "Axis along which to join."),
    ]


def test_sphinx_parameters_continue_on_deeper_lines():
    assert parameters(SPHINX) == [
        Parameter("parts", "What to join."),
        Parameter("glue", "Stands between two parts."),
    ]


def test_a_docstring_without_parameters_has_none():
    assert parameters("Nothing here.\n\nArgs:\n\nParameters\n") == []


def test_summary_is_one_line_followed_by_a_blank_one():
    assert split_summary("First line.\n\nBody.\n") == ("First line.", "Body.")
    assert split_summary("First line\ncontinued.\n\nBody.") is None
    assert split_summary("Only one line.") is None


def test_markup_becomes_plain():
    assert plain("Use :class:`~torch.Tensor` or\n  ``None``.") == "Use torch.Tensor or None."
    assert first_sentence("One. Two.") == "One."
