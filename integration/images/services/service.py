"""The test service: lines in, lines out, see goservice/main.go."""
import os
import socketserver
import threading
import time

nonce = os.urandom(8).hex()
ticks = 0
store = {}


def count():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.005)


def answer(line):
    verb, *args = line.split(" ", 2)
    if verb == "PUT":
        store[args[0]] = args[1]
        return "OK"
    if verb == "GET":
        return store.get(args[0], "")
    if verb == "STAT":
        return f"{nonce} {ticks}"
    return "ERR"


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write((answer(line.decode().rstrip("\r\n")) + "\n").encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


for _ in range(4):
    threading.Thread(target=count, daemon=True).start()
Server(("0.0.0.0", 7000), Handler).serve_forever()
