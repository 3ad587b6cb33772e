"""The pytest plugin, in runs of pytest of their own, which find it by its entry point."""

from __future__ import annotations

import pytest

pytest_plugins = "pytester"


@pytest.fixture(autouse=True)
def _short_tracebacks(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = --tb=short -p no:cacheprovider\nfilterwarnings = error")


def outcome(pytester: pytest.Pytester, code: str) -> pytest.RunResult:
    """What becomes of a test file that ends in `code`."""
    pytester.makepyfile(f"import socket\nfrom pylibevent import *\n\n{code}")
    return pytester.runpytest_subprocess()


def test_a_test_gets_a_base_and_runs_it_until_something_has_happened(
    pytester: pytest.Pytester,
) -> None:
    result = outcome(
        pytester,
        """
def test_it(event_base, run_until):
    called = []
    Timer(event_base, called.append, 1).add(0.01)
    run_until(lambda: called)
    assert called == [1]
""",
    )
    result.assert_outcomes(passed=1)


def test_what_does_not_happen_fails_with_the_events_that_are_pending(
    pytester: pytest.Pytester,
) -> None:
    result = outcome(
        pytester,
        """
def test_it(event_base, run_until):
    a, b = socket.socketpair()
    with a, b:
        Event(event_base, a, EV_READ, print).add()
        run_until(lambda: False, timeout=0.01)
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [r".*:\d+: in test_it", r"E +AssertionError: it did not happen within 0.01 s; pending:"]
    )
    result.stdout.re_match_lines([r"E.*\[fd .*Read"])


def test_what_the_base_holds_is_closed_with_it(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
def on_accept(listener, fd, address):
    BufferEvent.socket(listener.base, fd).enable(EV_READ)

def test_it(event_base, run_until):
    listener = Listener.bind(event_base, on_accept, ("127.0.0.1", 0))
    client = BufferEvent.socket(event_base)
    connected = []
    client.setcb(None, None, lambda bev, what: connected.append(what))
    client.connect(listener.address)
    run_until(lambda: connected)
    Timer(event_base, print).add(100)
""",
    )
    result.assert_outcomes(passed=1)


def test_an_object_that_is_still_referred_to_fails_the_test(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
connections = []

def test_it(event_base):
    connections.extend(BufferEvent.pair(event_base))

def test_the_next_is_not_to_blame(event_base):
    pass
""",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*test_it*", "left by the test: 2 BufferEvent"])


def test_a_socket_that_is_still_open_fails_the_test(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
accepted = []

def test_it(event_base, run_until):
    def on_accept(listener, fd, address):
        accepted.append(fd)

    listener = Listener.bind(event_base, on_accept, ("127.0.0.1", 0))
    with socket.create_connection(listener.address):
        run_until(lambda: accepted)
""",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.re_match_lines([r"left by the test: socket \d+"])


def test_a_cycle_is_left_to_the_garbage_collector(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
def test_it(event_base):
    cycle = [EvBuffer(b"x")]
    cycle.append(cycle)
""",
    )
    result.assert_outcomes(passed=1)


def test_a_fixture_of_the_users_may_be_built_on_it(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
import pytest

@pytest.fixture
def pair(event_base):
    return BufferEvent.pair(event_base)

def test_it(pair, run_until):
    a, b = pair
    b.enable(EV_READ)
    a.write(b"hello")
    run_until(lambda: b.input == b"hello")
""",
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("end", ["assert buffers == []", "pytest.skip()", "pytest.xfail()"])
def test_a_test_that_does_not_pass_has_that_as_its_only_result(
    pytester: pytest.Pytester, end: str
) -> None:
    result = outcome(
        pytester,
        f"""
import pytest

def test_it(event_base):
    buffers = [EvBuffer(b"x")]
    {end}
""",
    )
    assert result.parseoutcomes().keys() <= {"failed", "skipped", "xfailed"}


def test_the_base_may_be_closed_by_the_test(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
def test_it(event_base, run_until):
    Timer(event_base, event_base.close).add(0)
    run_until(lambda: event_base.closed)
""",
    )
    result.assert_outcomes(passed=1)


def test_an_exception_of_a_callback_is_the_tests(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
import pytest

def test_it(event_base, run_until):
    Timer(event_base, lambda: 1 / 0).add(0)
    with pytest.raises(ZeroDivisionError):
        run_until(lambda: False)
""",
    )
    result.assert_outcomes(passed=1)


def test_the_package_is_not_imported_before_a_test_asks_for_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
import sys

def test_nothing_of_ours_is_there():
    assert "pytest_pylibevent" in sys.modules
    assert [name for name in sys.modules if name.startswith("pylibevent")] == []

def test_now_it_is(event_base):
    assert "pylibevent" in sys.modules
"""
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_it_can_be_named_where_plugins_are_not_loaded_by_themselves(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_it(event_base, run_until): run_until(lambda: True)")
    for name in ("pytest_pylibevent", "pylibevent.pytest_plugin"):
        pytester.runpytest_subprocess("-p", name).assert_outcomes(passed=1)


def test_its_fixtures_are_listed_with_what_they_do(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--fixtures", "-v")
    result.stdout.fnmatch_lines(["event_base*", "*An EventBase.*", "run_until*"])
