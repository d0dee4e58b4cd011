"""A TCP proxy that resets, delays or forgets connections."""

import asyncio
import socket
import struct
import threading

FORGOTTEN = 5.0  # seconds until the server learns that a forgotten connection is gone, as its keepalive would tell it


class Proxy:
    """Forwards a port of the loopback interface to the server's. Runs in a thread of its own."""

    def __init__(self, target):
        self.target, self.port, self._delay, self._silent, self._links = target, None, 0.0, False, set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(self._listen())

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self):
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _accept(self, reader, writer):
        link = _Link(writer, forgotten=self._silent)
        self._links.add(link)
        try:
            if self._silent:
                while await reader.read(65536):
                    pass
                return
            try:
                upstream, link.server = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                return
            await asyncio.gather(self._pump(link, reader, link.server), self._pump(link, upstream, link.client))
        finally:
            _end(link.client)
            if link.server and not link.forgotten:
                _end(link.server)
            self._links.discard(link)

    async def _pump(self, link, reader, to):
        try:
            while data := await reader.read(65536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                if not link.forgotten:
                    to.write(data)
                    await to.drain()
        except OSError:
            pass
        if not link.forgotten:
            _end(to)

    def reset(self):
        """Cut every connection at once, with an RST to both ends."""
        async def cut():
            for link in list(self._links):
                _end(link.client, reset=True)
                _end(link.server, reset=True)
        self._call(cut())

    def delay(self, seconds):
        """Hold back whatever passes for so long; 0 ends it."""
        self._delay = seconds

    def forget(self):
        """From now on, swallow everything and answer nothing, new connections included."""
        async def swallow():
            self._silent = True
            for link in self._links:
                link.forgotten = True
                self._loop.call_later(FORGOTTEN, _end, link.server, True)
        self._call(swallow())

    def remember(self):
        """Let new connections through. The forgotten ones stay silent: their clients have to notice by themselves."""
        self._silent = False

    def close(self):
        """End everything."""
        self._server.close()
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class _Link:
    """The two ends of a connection."""

    def __init__(self, client, forgotten):
        self.client, self.server, self.forgotten = client, None, forgotten


def _end(writer, reset=False):
    if writer is None or writer.is_closing():
        return
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
