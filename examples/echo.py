"""An echo server on every core: `pyfanout run echo:handler`, or `python echo.py`."""

import pyfanout


async def handler(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


if __name__ == "__main__":
    pyfanout.serve(handler)
