import io

import pytest

import halfbyte.progress
from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress
from halfbyte.registry import Registry


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_are_plain_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(halfbyte.progress.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    assert list(Progress(stream=stream).track(range(5), "counting", 5)) == [0, 1, 2, 3, 4]
    assert stream.getvalue().splitlines() == ["counting: 2 of 5, 18 s left", "counting: 4 of 5, 6 s left"]


def test_a_line_says_what_else_there_is_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(halfbyte.progress.time, "monotonic", lambda: float(next(clock)))
    stream, says = io.StringIO(), iter("abc")
    assert list(Progress(stream=stream).track(range(3), "counting", 3, lambda: f"loss {next(says)}")) == [0, 1, 2]
    assert stream.getvalue().splitlines() == [
        "counting: 1 of 3, 20 s left, loss a", "counting: 2 of 3, 10 s left, loss b"
    ]  # fmt: skip


def test_on_a_terminal_there_is_a_bar() -> None:
    stream = Terminal()
    assert list(Progress(stream=stream).track(range(3), "counting", 3, lambda: "loss 0.5")) == [0, 1, 2]
    assert "counting" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()


def test_quiet_is_quiet() -> None:
    stream = Terminal()
    progress = Progress(quiet=True, stream=stream)
    progress.say("nothing")
    assert list(progress.track(range(3), "counting", 3)) == [0, 1, 2]
    assert stream.getvalue() == ""


def test_a_registry_knows_the_nearest_name_and_refuses_a_second_owner() -> None:
    things: Registry[int] = Registry("thing")
    things.register("first")(1)
    assert (things.get("first"), list(things), "first" in things) == (1, ["first"], True)
    with pytest.raises(HalfbyteError, match="unknown thing 'fisrt'; did you mean first"):
        things.get("fisrt")
    with pytest.raises(ValueError, match="twice"):
        things.register("first")(2)
