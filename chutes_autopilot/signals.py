"""Signals as the service takes them: each becomes a call in the reactor, and none kills the process."""

import signal
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any


def take_signals(reactor: Any, actions: Mapping[signal.Signals, Callable[[str], None]]) -> None:
    """From now on have the reactor call the action of a signal, with the signal's name.

    Twisted's own handlers would have twistd kill itself with the same signal at the very end, which is no exit code
    0; a SIGHUP that nobody handles kills at once. A signal that the process was started to ignore stays ignored: a
    shell's background job ignores Ctrl-C, and nohup SIGHUP.
    """
    take = partial(_take, reactor, actions)
    take()
    # As it starts, the reactor puts its own handlers in place; no signal may come before ours are back.
    reactor.addSystemEventTrigger("before", "startup", signal.pthread_sigmask, signal.SIG_BLOCK, list(actions))
    reactor.callWhenRunning(take)
    reactor.callWhenRunning(signal.pthread_sigmask, signal.SIG_UNBLOCK, list(actions))


def _take(reactor: Any, actions: Mapping[signal.Signals, Callable[[str], None]]) -> None:
    def soon(number: int, _frame: object) -> None:
        name = signal.Signals(number)
        reactor.callFromThread(actions[name], name.name)

    for number in actions:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, soon)
