"""Connections of clients that may be slow, silent or a thousand: one thread serves them all, and waits for none.

A conversation is: TLS handshake, request, answer. Its client has so many seconds, whatever it sends. Where there are
too many the oldest goes, not the newest: who asks at once is answered; who only holds a connection keeps nobody out.
"""

import logging
import math
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial
from typing import TypeVar

log = logging.getLogger("twctl")

# Conversations at a time, and bytes of answers under way. With TLS a conversation takes 65 kB.
CONNECTIONS, ANSWER_BYTES = 64, 4 << 20
REQUEST_BYTES, PART_BYTES = 16384, 16384
# Seconds that a client has for handshake and request together, and for the answer; Prometheus waits for 10 by default.
REQUEST_SECONDS, ANSWER_SECONDS = 5.0, 10.0
# Taken before those that are there are heard again: not so many that a burst pushes out who has just asked.
ACCEPTED_AT_ONCE = 16
STARVED_SECONDS = 0.1  # until the next try, where the process has no descriptor left
STOP_SECONDS = 2.0  # for the answer that is just being made: what is put back afterwards does not wait longer

READ, WRITE, NOTHING = selectors.EVENT_READ, selectors.EVENT_WRITE, 0
Answer = Callable[[bytes], bytes]  # to a request: its line and its headers
Result = TypeVar("Result")
Steps = Generator[int, None, Result]  # yields the event to wait for


def _when_ready(event: int, act: Callable[[], Result]) -> Steps[Result]:
    """Do something to a socket that does not block; `event` is what it waits for, unless TLS says another."""
    while True:
        try:
            return act()
        except ssl.SSLWantReadError:
            yield READ
        except ssl.SSLWantWriteError:
            yield WRITE
        except BlockingIOError:
            yield event


class _Conversation:
    """One connection. request, answer: empty until they are there; end: when the client's time is over."""

    def __init__(self, client: socket.socket, tls: ssl.SSLContext | None, at_once: Answer) -> None:
        self.socket = client
        self.request = self.answer = b""
        self.end = time.monotonic() + REQUEST_SECONDS
        self.steps = self._secret_steps(tls, at_once) if tls else self._steps(at_once)

    def _secret_steps(self, tls: ssl.SSLContext, at_once: Answer) -> Steps[None]:
        yield READ  # who says nothing costs no memory of TLS
        secret = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.socket = secret
        yield from _when_ready(READ, secret.do_handshake)
        yield from self._steps(at_once)
        if self.answer:
            secret.unwrap()  # says goodbye; the client's own is not waited for

    def _steps(self, at_once: Answer) -> Steps[None]:
        received = b""
        while b"\n\r\n" not in received and b"\n\n" not in received:
            part = yield from _when_ready(READ, partial(self.socket.recv, PART_BYTES))
            received += part
            if not part or len(received) > REQUEST_BYTES:
                return
        self.request, self.end = received, math.inf
        self.answer = at_once(received)
        while not self.answer:
            yield NOTHING
        self.end = time.monotonic() + ANSWER_SECONDS
        unsent = memoryview(self.answer)
        while unsent:
            sent = yield from _when_ready(WRITE, partial(self.socket.send, unsent[:PART_BYTES]))
            unsent = unsent[sent:]


class Connections:
    """Serves a socket that listens, in a thread of its own, until `close`.

    tls: asked for each connection. at_once: answers a request; empty where that takes long. at_leisure: answers
    such a one. It is called for at most half of the time, and once for all that wait with the same request. ended:
    counts the conversations that were ended because their time was over, or for newer ones (`late`, `crowded`).
    """

    def __init__(
        self,
        listening: socket.socket,
        tls: Callable[[], ssl.SSLContext | None],
        at_once: Answer,
        at_leisure: Answer,
        ended: Counter[str],
    ) -> None:
        self._listening, self._tls, self._at_once, self._at_leisure = listening, tls, at_once, at_leisure
        self._open: dict[_Conversation, int] = {}  # oldest first; what each waits for
        self._leisure = 0.0
        self._ended = ended
        self._stop, self._running = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and end every conversation."""
        self._running.close()
        self._thread.join(STOP_SECONDS)

    def _serve(self) -> None:
        self._listening.settimeout(0)
        self._selector.register(self._stop, READ)
        self._selector.register(self._listening, READ)
        while not self._turn():
            pass
        for each in list(self._open):
            self._end(each)
        self._selector.close()
        self._stop.close()

    def _turn(self) -> bool:
        """Whether to stop."""
        for key, _ in self._selector.select(self._wait()):
            if key.fileobj is self._stop:
                return True
            if key.data:
                self._go_on(key.data)
            else:
                self._accept()
        self._answer_waiting()
        self._limit()
        return False

    def _waiting(self) -> list[_Conversation]:
        return [each for each in self._open if each.request and not each.answer]

    def _wait(self) -> float | None:
        """Seconds until there is something to do even if no client does anything; None: there is not."""
        due = min((each.end for each in self._open), default=math.inf)
        if self._waiting():
            due = min(due, self._leisure)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError:
                self._crowd_out(list(self._open)[:1])
                time.sleep(STARVED_SECONDS)
                return
            client.settimeout(0)
            new = _Conversation(client, self._tls(), self._at_once)
            self._open[new] = NOTHING
            self._go_on(new)
            self._crowd_out(list(self._open)[:-CONNECTIONS])

    def _go_on(self, one: _Conversation) -> None:
        if one not in self._open:  # crowded out since the selector named it
            return
        try:
            event = next(one.steps, None)
        except OSError:  # the client has gone, or speaks no TLS
            event = None
        except Exception:
            log.exception("a request to the metrics' server failed")
            event = None
        if event is None:
            self._end(one)
        elif event != self._open[one]:
            self._await(one, event)

    def _await(self, one: _Conversation, event: int) -> None:
        if self._open[one]:
            self._selector.unregister(one.socket)
        self._open[one] = event
        if event:
            self._selector.register(one.socket, event, one)

    def _answer_waiting(self) -> None:
        waiting, started = self._waiting(), time.monotonic()
        if not waiting or started < self._leisure:
            return
        request = waiting[0].request
        answer = self._at_leisure(request)
        self._leisure = 2 * time.monotonic() - started
        for each in waiting:
            if each.request == request:
                each.answer = answer
                self._go_on(each)

    def _limit(self) -> None:
        """End those whose time is over; clients that ask and do not read must not fill the memory either."""
        now = time.monotonic()
        for each in [each for each in self._open if each.end <= now]:
            self._ended["late"] += 1
            self._end(each)
        answered = [each for each in self._open if each.answer]
        while len(answered) > 1 and sum(map(len, {each.answer for each in answered})) > ANSWER_BYTES:
            self._crowd_out([answered.pop(0)])

    def _crowd_out(self, conversations: list[_Conversation]) -> None:
        for each in conversations:
            self._ended["crowded"] += 1
            self._end(each)

    def _end(self, one: _Conversation) -> None:
        self._await(one, NOTHING)
        del self._open[one]
        one.steps.close()
        one.socket.close()
