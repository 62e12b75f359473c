"""Requests at times of their own, whatever became of those before, over HTTP/1.1 and asyncio; none is tried twice."""

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field

#: Seconds after which a request is given up, and an idle connection is not used any more.
GIVE_UP, IDLE = 30, 20
#: Upper ends of the classes that latencies are counted in, in milliseconds.
CLASSES = [2**power / 4 for power in range(18)]


@dataclass
class Outcomes:
    """What became of the requests of one kind."""

    done: int = 0
    statuses: Counter = field(default_factory=Counter)
    #: The first of those that failed, as (second, what happened); and how many there were.
    failures: list = field(default_factory=list)
    failed: int = 0
    longest_ms: float = 0
    longest_at: float = 0
    classes: Counter = field(default_factory=Counter)
    #: For each second of the run the longest, in milliseconds.
    by_second: dict = field(default_factory=dict)

    def took(self, second, milliseconds):
        if milliseconds > self.longest_ms:
            self.longest_ms, self.longest_at = milliseconds, second
        self.classes[next((top for top in CLASSES if milliseconds <= top), CLASSES[-1])] += 1
        self.by_second[int(second)] = max(self.by_second.get(int(second), 0), milliseconds)

    def fail(self, second, why):
        self.failed += 1
        if len(self.failures) < 100:
            self.failures.append((round(second, 2), why))

    def quantile(self, share):
        """The upper end of the class that this quantile of the latencies is in, in milliseconds."""
        left = share * sum(self.classes.values())
        for top in CLASSES:
            left -= self.classes[top]
            if left <= 0:
                return top
        return CLASSES[-1]


class Client:
    """Connections to one port."""

    def __init__(self, port, began):
        self.port, self.began, self.idle = port, began, deque()

    def second(self):
        return time.monotonic() - self.began

    async def connection(self):
        while self.idle:
            reader, writer, since = self.idle.pop()
            if time.monotonic() - since < IDLE and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, request):
        reader, writer = await self.connection()
        try:
            writer.write(request)
            head = "http/1.1 1"
            while head.startswith("http/1.1 1"):  # interim answers only announce the final one
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = head.split("content-length:", 1)
            body = await reader.readexactly(int(length[1].split("\r\n", 1)[0])) if len(length) == 2 else await chunks(reader)
        except BaseException:
            writer.close()
            raise
        if "connection: close" in head:
            writer.close()
        else:
            self.idle.append((reader, writer, time.monotonic()))
        return int(head.split(" ", 2)[1]), body

    async def ask(self, request, outcomes, good):
        """One request, which is due now; `good` says whether status and body are as they should be."""
        due = time.monotonic()
        try:
            status, body = await asyncio.wait_for(self.exchange(request), GIVE_UP)
            outcomes.statuses[status] += 1
            if not good(status, body):
                outcomes.fail(self.second(), f"{status} {body[:200].decode('latin-1')}")
        except (OSError, EOFError, ValueError, IndexError, asyncio.TimeoutError, asyncio.LimitOverrunError) as error:
            outcomes.fail(self.second(), f"{type(error).__name__} {error}")
        outcomes.done += 1
        outcomes.took(due - self.began, (time.monotonic() - due) * 1000)

    async def at_rate(self, rate, until, request, outcomes, good):
        """So many requests a second until then, each at its time; `request` makes one of its number."""
        under_way, number = set(), 0
        while (due := self.began + number / rate) < until:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(self.ask(request(number), outcomes, good))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number += 1
        await asyncio.gather(*under_way)


async def chunks(reader):
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()
    return body
