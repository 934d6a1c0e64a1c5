"""The multiplexer: bytes and time in, calls and bytes out. No room in here knows a socket, a clock or a loop."""
