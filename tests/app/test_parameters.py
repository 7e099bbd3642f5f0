from __future__ import annotations

import pytest

from app.errors import ServiceError
from app.parameters import MAX_VALUE_CHARACTERS, RunParameters, check_query, read_parameters


def test_nothing_given_means_the_defaults() -> None:
    assert read_parameters([]) == RunParameters("default", None, None, False)


def test_each_parameter_is_read() -> None:
    given = [
        ("set", "vision"),
        ("to", "0002_x"),
        ("policy", "strict"),
        ("allow_unknown_history", "true"),
    ]

    assert read_parameters(given) == RunParameters("vision", "0002_x", "strict", True)


def test_field_that_was_left_empty_counts_as_absent() -> None:
    assert read_parameters([("to", ""), ("policy", "")]) == RunParameters()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param([("policy", "all")], "skip-missed, strict, run-missed", id="policy"),
        pytest.param([("allow_unknown_history", "maybe")], "true, 1, false, 0", id="boolean"),
        pytest.param([("to", "a"), ("to", "a")], "more than once", id="twice"),
        pytest.param([("to", "x" * (MAX_VALUE_CHARACTERS + 1))], "longer than", id="long"),
    ],
)
def test_value_that_cannot_be_is_refused_and_named(
    given: list[tuple[str, str]], words: str
) -> None:
    with pytest.raises(ServiceError, match=words) as caught:
        read_parameters(given)

    assert caught.value.error_type == "invalid_parameter"
    assert caught.value.data["parameter"] == given[0][0]


def test_unknown_query_parameter_is_refused_and_named() -> None:
    with pytest.raises(ServiceError, match=r'"polcy".*set, to') as caught:
        check_query([("set", "a"), ("polcy", "b")], ("set", "to"))

    assert caught.value.to_dict()["parameter"] == "polcy"


def test_empty_parameter_of_a_query_is_refused() -> None:
    with pytest.raises(ServiceError, match='"policy" is empty'):
        check_query([("policy", "")], ("policy",))
