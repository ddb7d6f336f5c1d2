"""A program that has a loop of its own: the master is one of the things that asyncio watches."""

import asyncio

import pyfanout


def handler(conn, addr):
    conn.recv(4096)
    conn.sendall(b"HTTP/1.0 200 OK\r\n\r\nHello\n")


async def report(master):
    while True:
        await asyncio.sleep(1)
        print([(worker.slot, worker.state, worker.in_flight) for worker in master.workers], flush=True)


async def main():
    with pyfanout.Master(handler, bind="127.0.0.1:8000", workers=2) as master:
        over = asyncio.get_running_loop().create_future()

        def step():
            if not master.step(0):  # SIGTERM, and all have left
                over.set_result(None)
                asyncio.get_running_loop().remove_reader(master.fileno())

        asyncio.get_running_loop().add_reader(master.fileno(), step)
        reporting = asyncio.create_task(report(master))
        await over
        reporting.cancel()


if __name__ == "__main__":
    asyncio.run(main())
