"""Two network namespaces, a NIC between them, and a symvirt-guestd in the first."""
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from guestd_peers import Failure, Port

GUESTD = ""  # path of the daemon, set by the test
SLOT = {"slot": "hca0", "match": {"driver": "veth"}, "addresses": ["10.99.0.1/24", "fd99::1/64"], "quiesce": "tcp"}


def run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class World:
    """Two namespaces, a NIC, a guestd."""

    def __init__(self):
        self.work = tempfile.mkdtemp(prefix="guestd-test-")
        tag = os.path.basename(self.work)[-8:]
        self.guest_ns, self.peer_ns = f"gd{tag}a", f"gd{tag}b"
        self.process = None
        self.cleanup = []
        for ns in (self.guest_ns, self.peer_ns):
            run("ip", "netns", "add", ns)
            run("ip", "-n", ns, "link", "set", "lo", "up")
        self.socket = f"{self.work}/guestd.sock"
        self.port = Port(f"{self.work}/port")
        self.config()

    def config(self, **extra):
        values = {"socket": self.socket, "state": f"{self.work}/guestd.json", "port_path": f"{self.work}/port", **extra}
        with open(f"{self.work}/guestd.toml", "w") as out:
            for key, value in values.items():
                out.write(f"{key} = {json.dumps(value)}\n")

    def ip(self, *args, ns=None, check=True):
        return run("ip", "-n", ns or self.guest_ns, *args, check=check)

    def plug(self, name="eth0", mac="52:54:00:78:00:01"):
        self.ip("link", "add", name, "address", mac, "type", "veth", "peer", "name", "peer0", "netns", self.peer_ns)
        self.ip("addr", "add", "10.99.0.2/24", "dev", "peer0", ns=self.peer_ns)
        self.ip("addr", "add", "fd99::2/64", "dev", "peer0", "nodad", ns=self.peer_ns)

    def cable(self, state="up"):
        self.ip("link", "set", "peer0", state, ns=self.peer_ns)

    def unplug(self, name="eth0"):
        self.ip("link", "del", name)

    def start(self):
        self.log = open(f"{self.work}/guestd.log", "a")
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.guest_ns, GUESTD, "--config", f"{self.work}/guestd.toml", "--foreground", "--debug"],
            stderr=self.log)
        self.host = self.port.accept()
        self.host.wait_event("hello")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.host.close()

    def up(self, slots=None, plug=True):
        """Guest as after its boot: NIC there, configured, ready."""
        if plug:
            self.plug()
            self.cable()
        self.start()
        self.host.call("guest.configure", node="v1", slots=slots or [SLOT])
        return self.host.call("device.ready", slots=["hca0"]) if plug else None

    def in_ns(self, ns, body):
        """Runs body() in a thread of its own inside that namespace."""
        out = {}

        def inside():
            with open(f"/var/run/netns/{ns}") as handle:
                libc().setns(handle.fileno(), 0x40000000)
            try:
                out["result"] = body()
            except Exception as error:  # noqa: BLE001
                out["error"] = error
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if "error" in out:
            raise out["error"]
        return out["result"]

    def tcp_pair(self, local="10.99.0.1", remote="10.99.0.2"):
        family = socket.AF_INET6 if ":" in local else socket.AF_INET

        def listen():
            s = socket.socket(family)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((remote, 0))
            s.listen()
            return s
        listener = self.in_ns(self.peer_ns, listen)

        def connect():
            s = socket.socket(family)
            s.settimeout(5)
            s.bind((local, 0))
            s.connect(listener.getsockname()[:2])
            return s
        client = self.in_ns(self.guest_ns, connect)
        server, _ = listener.accept()
        self.cleanup += [client, server, listener]
        return client, server

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            code = self.process.wait(timeout=10)
            assert code == 0, f"guestd ended with {code}"  # also how the sanitizers report
        for s in self.cleanup:
            s.close()

    def remove(self, keep):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for ns in (self.guest_ns, self.peer_ns):
            run("ip", "netns", "del", ns, check=False)
        if not keep:
            shutil.rmtree(self.work)


def libc():
    import ctypes
    return ctypes.CDLL(None, use_errno=True)


def expect_failure(code, text, body):
    try:
        body()
    except Failure as failure:
        assert failure.code == code and text in failure.message, str(failure)
        return failure
    raise AssertionError(f"succeeded; expected {code} with '{text}'")


def quiesce(w, epoch, round_, job=7, lease_ms=5000, timeout_ms=2000, **extra):
    return w.host.call("job.quiesce", job=job, epoch=epoch, round=round_, lease_ms=lease_ms, timeout_ms=timeout_ms, **extra)


def resume(w, epoch, round_=1, job=7):
    return w.host.call("job.resume", job=job, epoch=epoch, round=round_, timeout_ms=2000)


def until(what, condition, timeout=5):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.02)
