"""A backend over HTTP/1.1 that does as its script says, well or badly."""

import asyncio

#: What it does badly before the head of an answer is out: a request that it did not answer can go elsewhere.
UNANSWERED = ["reset", "silence", "garbage", "half a head", "503", "a flood of 100"]
#: And afterwards.
ANSWERED = ["a cut body", "a broken chunk", "trickle"]


class Scripted:
    """Answers `body` to everything while its `fault` is none."""

    def __init__(self, body):
        self.body, self.fault, self.server = body, None, None
        self.port = None

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        try:
            while await self.answer(reader, writer):
                pass
        except (OSError, EOFError, ValueError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def answer(self, reader, writer):
        """One exchange; whether there may be another one on this connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length:" in head:
            await reader.readexactly(int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]))
        fault = self.fault
        if fault is None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.body) + self.body)
            return True
        await getattr(self, fault.replace(" ", "_").replace("503", "unavailable"))(writer)
        return False

    @staticmethod
    async def reset(writer):
        writer.transport.abort()

    @staticmethod
    async def silence(_writer):
        await asyncio.sleep(10)

    @staticmethod
    async def garbage(writer):
        writer.write(b"\0\1\2\3 this is not HTTP\r\n\r\n")

    @staticmethod
    async def half_a_head(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")

    @staticmethod
    async def unavailable(writer):
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    @staticmethod
    async def a_flood_of_100(writer):
        for _ in range(1000):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()

    @staticmethod
    async def a_cut_body(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\nonly this")

    @staticmethod
    async def a_broken_chunk(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n")

    @staticmethod
    async def trickle(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n")
        for _ in range(10):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.3)
