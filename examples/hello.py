"""The smallest HTTP server on every core: `pyfanout run hello:handler`, or `python hello.py`."""

import pyfanout

ANSWER = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nHello from worker %d, process %d\n"


def handler(conn, addr):
    conn.recv(4096)  # a real server reads until the request is complete
    worker = pyfanout.current_worker()
    conn.sendall(ANSWER % (worker.slot, worker.pid))


if __name__ == "__main__":
    pyfanout.serve(handler, workers="auto")
