"""A program that forks its own workers, and keeps them alive by its own rules. The dispatcher gives them clients."""

import os
import signal
import sys

import pyfanout

AWAITED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}


def handler(conn, addr):
    conn.recv(4096)
    conn.sendall(b"HTTP/1.0 200 OK\r\n\r\nHello from %d\n" % os.getpid())


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    with pyfanout.Dispatcher(bind="127.0.0.1:8000") as dispatcher:

        def fork():
            pid = os.fork()
            if pid == 0:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
                os._exit(dispatcher.serve(handler))
            return pid

        leaving = False
        workers = {fork() for _ in range(2)}
        while workers:
            if signal.sigwait(AWAITED) != signal.SIGCHLD:
                leaving = True
                dispatcher.stop()  # the workers serve what is queued, and exit
            for pid in list(workers):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    workers.remove(pid)
                    print(f"{pid} ended with {os.waitstatus_to_exitcode(status)}", flush=True)
            if not leaving:
                dispatcher.start()  # if it is what has died
                workers.update(fork() for _ in range(2 - len(workers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
