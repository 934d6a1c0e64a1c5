"""The I/O: asyncio Protocol classes that join sockets with the multiplexer. The only rooms that touch sockets."""
