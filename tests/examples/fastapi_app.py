"""A FastAPI app on the internet that listens on no port of its own machine.

python fastapi_app.py RELAY TOKEN       needs fastapi and 'fastrelay[asgi]'; Ctrl-C ends it
"""

import asyncio
import contextlib
import sys

from fastapi import FastAPI, Request

import fastrelay
import fastrelay.asgi

app = FastAPI()


@app.get("/")
async def hello(request: Request) -> dict[str, str]:
    return {"hello": request.client.host if request.client else "program"}


async def main(relay: str, token: str) -> None:
    async with fastrelay.connect(relay, token=token) as tunnel, fastrelay.asgi.serve(app, tunnel, "app") as service:
        print(f"http://{service.host}:{service.port}/", flush=True)
        await tunnel.wait_closed()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
