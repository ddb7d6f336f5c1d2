"""A program that forks its own workers, and keeps them alive by its own rules. The dispatcher gives them clients."""

import os
import signal
import sys

import pyfanout


def handler(conn, addr):
    conn.recv(4096)
    conn.sendall(b"HTTP/1.0 200 OK\r\n\r\nHello from %d\n" % os.getpid())


def main():
    with pyfanout.Dispatcher(bind="127.0.0.1:8000") as dispatcher:

        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(dispatcher.serve(handler))
            return pid

        def stop(*_):
            dispatcher.stop()  # the workers serve what is queued, and exit
            leaving.append(True)

        leaving = []
        signal.signal(signal.SIGTERM, stop)
        workers = {fork() for _ in range(2)}
        while workers:
            pid, status = os.wait()
            if pid in workers:
                workers.remove(pid)
                print(f"{pid} ended with {os.waitstatus_to_exitcode(status)}", flush=True)
            if not leaving:
                dispatcher.start()  # if it is what has died
                while len(workers) < 2:
                    workers.add(fork())
    return 0


if __name__ == "__main__":
    sys.exit(main())
