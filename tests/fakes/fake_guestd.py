"""A symvirt-guestd that does what a test tells it: docs/protocols.md section 3, seen from the plugin.

It listens on an AF_UNIX socket, answers the plugin's calls from its own fields (healthy, at_rest, gate ...), and lets
the test call every registered step (members, quiesce, resume). Everything that arrived is kept in `log`.
"""

import json
import os
import socket
import struct
import threading
import time


class CallError(Exception):
    def __init__(self, error):
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code = error.get("code")


class Connection:
    """One connected plugin thread or task; `registered` holds the params of its step.register."""

    def __init__(self, guestd, sock):
        self.guestd = guestd
        self.sock = sock
        self.registered = None
        self.closed = False
        self._next_id = 0
        self._replies = {}
        self._changed = threading.Condition()
        self._write_lock = threading.Lock()

    def send(self, message):
        with self._write_lock:
            self.sock.sendall(json.dumps(message).encode() + b"\n")

    def send_raw(self, data):
        with self._write_lock:
            self.sock.sendall(data)

    def call(self, method, params=None, timeout=10.0):
        with self._changed:
            self._next_id += 1
            request_id = f"{id(self):x}-{self._next_id}"
        try:
            self.send({"id": request_id, "method": method, "params": params or {}})
        except OSError as error:
            raise TimeoutError(f"{method}: connection is gone") from error
        end = time.monotonic() + timeout
        with self._changed:
            while request_id not in self._replies:
                left = end - time.monotonic()
                if self.closed or left <= 0:
                    raise TimeoutError(f"{method}: no answer ({'closed' if self.closed else 'deadline'})")
                self._changed.wait(left)
            reply = self._replies.pop(request_id)
        if "error" in reply:
            raise CallError(reply["error"])
        return reply["result"]

    def run(self):
        buffer = b""
        try:
            while True:
                data = self.sock.recv(65536)
                if not data:
                    break
                buffer += data
                while b"\n" in buffer:
                    line, buffer = buffer.split(b"\n", 1)
                    if line.strip():
                        self._received(json.loads(line))
        except OSError:
            pass
        finally:
            self.close()

    def _received(self, message):
        if "method" not in message:
            with self._changed:
                self._replies[message["id"]] = message
                self._changed.notify_all()
            return
        # Every request in a thread of its own: a gated task.enter must not hold back the rest.
        threading.Thread(target=self.guestd.serve, args=(self, message), daemon=True).start()

    def close(self):
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        # shutdown first: close() alone would not wake the thread in recv, nor tell the peer while it is in there.
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
        self.guestd.dropped(self)


class FakeGuestd:
    def __init__(self, path):
        self.path = path
        self.healthy = True
        self.reason = ""
        self.check_extra = {}
        self.epoch = 0
        self.at_rest = False
        self.gate = threading.Event()  # set: tasks may enter
        self.gate.set()
        self.log = []  # (method, params)
        self._connections = []
        self._changed = threading.Condition()
        self._listener = None
        self.start()

    def start(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        os.chmod(self.path, 0o666)
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self):
        """As if guestd was killed: listener and all connections gone."""
        listener, self._listener = self._listener, None
        if listener:
            try:
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
        for connection in list(self._connections):
            connection.close()

    def _accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            cred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _, uid, _ = struct.unpack("3i", cred)
            connection = Connection(self, sock)
            connection.uid = uid
            with self._changed:
                self._connections.append(connection)
            threading.Thread(target=connection.run, daemon=True).start()

    def dropped(self, connection):
        with self._changed:
            if connection in self._connections:
                self._connections.remove(connection)
            self._changed.notify_all()

    def serve(self, connection, message):
        method, params = message["method"], message.get("params", {})
        with self._changed:
            self.log.append((method, params))
        result = {}
        if connection.uid != 0 and method != "node.check":  # as the real one
            error = {"code": "PERMISSION", "message": f"{method}: only root may ask this, not uid {connection.uid}"}
            connection.send({"id": message["id"], "error": error})
            return
        if method == "node.check":
            result = {"healthy": self.healthy, "reason": self.reason, **self.check_extra}
        elif method == "task.enter":
            self.gate.wait()
        elif method == "step.register":
            result = {"epoch": self.epoch, "at_rest": self.at_rest}
        try:
            connection.send({"id": message["id"], "result": result})
        except OSError:
            return
        if method == "step.register":
            with self._changed:
                connection.registered = params
                self._changed.notify_all()

    def seen(self, method):
        with self._changed:
            return [params for name, params in self.log if name == method]

    def steps(self):
        with self._changed:
            return [c for c in self._connections if c.registered is not None]

    def wait_for_step(self, timeout=20.0, count=1, but=()):
        """The connections of `count` registered steps, not counting those in `but`."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [c for c in self._connections if c.registered is not None and c not in but]
                if len(found) >= count:
                    return found
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{self.path}: {len(found)} of {count} steps registered; last {self.log[-5:]}")
                self._changed.wait(left)
