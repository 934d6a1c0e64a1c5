"""Ask a web server in the network of a client: its machine runs `fastrelay client --allow-dial 10.0.0.0/8:80`.

python dial_through.py RELAY TOKEN CLIENT HOST PORT     such as relay.example.com fr1.… home 10.0.0.5 80
"""

import asyncio
import sys

import fastrelay


async def main(relay: str, token: str, client: str, host: str, port: str) -> None:
    async with fastrelay.connect(relay, token=token, name="") as tunnel:
        reader, writer = await tunnel.client(client).open_connection(host, int(port))
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        print((await reader.read()).partition(b"\r\n\r\n")[2].decode())
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
