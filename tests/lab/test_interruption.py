import os
import signal
import threading

import pytest

from loraga.lab.interruption import SIGNALS, Interrupted, interruptible


def send(number):
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_BLOCK, [])  # Python runs the handler of a signal that came before this returns


@pytest.fixture
def noted():
    return []


@pytest.fixture
def asked(noted):
    """Stands in for nothing: the block that a run has around it, with what it was told."""
    with interruptible(lambda: noted.append("noted")) as interruption:
        yield interruption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_outside_a_good_moment_a_signal_stops_at_once(number, code, asked, noted):
    with pytest.raises(Interrupted, match="interrupted; the same command goes on") as caught:
        send(number)

    assert caught.value.exit_code == code
    assert noted == []


@pytest.mark.parametrize("number", SIGNALS)
def test_while_a_good_moment_is_waited_for_the_first_signal_is_only_noted(number, asked, noted):
    with asked.at_a_good_moment():
        assert asked.number is None
        send(number)
        assert asked.number == number
        assert noted == ["noted"]


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_stops_at_once(first, second, asked, noted):
    with pytest.raises(Interrupted, match="interrupted") as caught, asked.at_a_good_moment():
        send(first)
        send(second)

    assert caught.value.exit_code == 128 + second
    assert noted == ["noted"]


def test_after_the_good_moment_a_signal_stops_at_once_again(asked, noted):
    with asked.at_a_good_moment():
        pass

    with pytest.raises(Interrupted, match="interrupted"):
        send(signal.SIGINT)
    assert noted == []


def test_after_an_error_in_the_good_moment_nobody_waits_any_more(asked):
    with pytest.raises(ValueError, match="broken"), asked.at_a_good_moment():
        raise ValueError("broken")

    with pytest.raises(Interrupted, match="interrupted"):
        send(signal.SIGTERM)


def test_what_catches_every_exception_does_not_catch_an_interruption(asked):
    swallowed = False
    with pytest.raises(Interrupted, match="interrupted"):
        try:
            send(signal.SIGTERM)
        except Exception:
            swallowed = True

    assert not swallowed


def test_whoever_catches_ctrl_c_catches_an_interruption():
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert str(Interrupted(signal.SIGTERM, "go on like this")) == "go on like this"


@pytest.mark.parametrize("ends", ["well", "with an error", "interrupted"])
def test_the_handlers_that_were_there_are_put_back(ends):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    inside = {}
    try:
        with interruptible(lambda: None):
            inside = {number: signal.getsignal(number) for number in SIGNALS}
            if ends == "with an error":
                raise ValueError(ends)
            if ends == "interrupted":
                send(signal.SIGTERM)
    except (ValueError, Interrupted):
        assert ends != "well"

    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert all(inside[number] != before[number] for number in SIGNALS)


def test_in_another_thread_the_work_goes_on_and_the_handlers_stay():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with interruptible(lambda: None) as interruption, interruption.at_a_good_moment():
            seen.append((interruption.number, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [(None, before)]
