"""The two peers of symvirt-guestd, in Python: noded at the other end of the port, a plugin on guestd.sock."""
import json
import os
import socket
import threading
import time


class Failure(Exception):
    def __init__(self, error):
        super().__init__(f"{error['code']}: {error['message']}")
        self.code = error["code"]
        self.message = error["message"]


class LinePeer:
    """One connection of JSON lines. Questions of the other side go to `answer(method, params)`."""

    def __init__(self, sock, answer=None):
        self.sock = sock
        self.answer = answer
        self.events = []
        self.answers = {}
        self.arrived = threading.Condition()
        self.closed = False
        self.next_id = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        buffer = b""
        try:
            while chunk := self.sock.recv(65536):
                buffer += chunk
                while b"\n" in buffer:
                    line, buffer = buffer.split(b"\n", 1)
                    if line.strip():
                        self._line(json.loads(line))
        except OSError:
            pass
        with self.arrived:
            self.closed = True
            self.arrived.notify_all()

    def _line(self, message):
        if "method" in message:
            threading.Thread(target=self._serve, args=(message,), daemon=True).start()
            return
        with self.arrived:
            if "event" in message:
                self.events.append(message)
            else:
                self.answers.setdefault(message["id"], []).append(message)
            self.arrived.notify_all()

    def _serve(self, message):
        result = self.answer(message["method"], message["params"])
        if result is not None:
            self.send({"id": message["id"], "result": result})

    def send(self, message):
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def ask(self, method, **params):
        self.next_id += 1
        id_ = params.pop("id_", None) or f"{os.getpid()}-{id(self)}-{self.next_id}"
        self.send({"id": id_, "method": method, "params": params})
        return id_

    def wait(self, id_, timeout=60):
        with self.arrived:
            if not self.arrived.wait_for(lambda: self.answers.get(id_) or self.closed, timeout):
                raise TimeoutError(f"no answer to {id_} in {timeout} s")
            if not self.answers.get(id_):
                raise ConnectionError("closed")
            message = self.answers[id_].pop(0)
        if "error" in message:
            raise Failure(message["error"])
        return message["result"]

    def call(self, method, timeout=60, **params):
        return self.wait(self.ask(method, **params), timeout)

    def wait_event(self, name, timeout=60):
        with self.arrived:
            if not self.arrived.wait_for(lambda: any(e["event"] == name for e in self.events), timeout):
                raise TimeoutError(f"no event {name}")
            return [e for e in self.events if e["event"] == name][-1]

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()


class Port:
    """Stands for the virtio-serial port: guestd connects to it."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.listener.settimeout(60)

    def accept(self):
        sock, _ = self.listener.accept()
        sock.sendall(b"\n")
        return LinePeer(sock)


class Plugin:
    """A step's plugin: registers, counts what it is told, and answers as the ranks of `ranks` would."""

    def __init__(self, path, job, step=0, ranks=2, epoch_at_rest=None, uid=2000, members=None):
        self.job, self.step, self.ranks = job, step, ranks
        self.members = members or [os.getpid()] * ranks
        self.held = epoch_at_rest or 0
        self.log = []
        self.silent = False
        self.delay = 0
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        self.peer = LinePeer(sock, self.answer)
        extra = {"epoch_at_rest": epoch_at_rest} if epoch_at_rest else {}
        self.registered = self.peer.call("step.register", job=job, step=step, uid=uid, nspace=f"slurm.pmix.{job}.{step}",
                                         tasks=ranks, pid=os.getpid(), **extra)

    def answer(self, method, params):
        self.log.append((time.monotonic(), method, params))
        if self.silent:
            return None
        time.sleep(self.delay)
        if method == "step.members":
            return {"members": [{"rank": r, "pid": p} for r, p in enumerate(self.members)], "tasks": self.ranks}
        if method == "step.quiesce":
            self.held = params["epoch"]
            return {"answers": [{"rank": r, "pid": self.members[r], "state": "rest", "payload": f"p{r}"} for r in range(self.ranks)],
                    "held": self.ranks}
        if method == "step.resume":
            self.held = 0
            return {"answers": [{"rank": r, "pid": self.members[r], "state": "rest"} for r in range(self.ranks)]}
        return None

    def methods(self):
        return [m for _, m, _ in self.log]

    def close(self):
        self.peer.close()
