"""What every task has from its base."""

import warnings
from typing import Any, List

import pytest

from mlx_trm.config.sections import TaskConfig
from mlx_trm.tasks import Task


def test_a_task_may_still_define_methods_by_their_old_names() -> None:
    """With a warning at its class; a task that has the new names is asked by those."""
    with pytest.warns(DeprecationWarning) as found:

        class Old(Task):
            """Written for an older version."""

            def meant(self, text: str) -> List[str]:
                """The old name of expand_puzzle."""
                return [text, text]

            def remark(self, inputs: Any, tokens: Any) -> str:
                """The old name of describe_answer."""
                return f"{inputs}{tokens}"

    assert [str(each.message) for each in found] == [
        "Old.meant: is called expand_puzzle now",
        "Old.remark: is called describe_answer now",
    ]
    assert {each.filename for each in found} == {__file__}
    task = Old(TaskConfig("own"))
    assert task.expand_puzzle("a") == ["a", "a"] and task.describe_answer(1, 2) == "12"
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Both(Old):
            """Has the new name, and its parent's old one."""

            remark = Old.remark

            def describe_answer(self, inputs: Any, tokens: Any) -> str:
                """The new name counts."""
                return "new"

        class Plain(Task):
            """Has neither."""

    assert Both(TaskConfig("own")).describe_answer(1, 2) == "new"
    assert Plain(TaskConfig("own")).expand_puzzle("a") == ["a"]
