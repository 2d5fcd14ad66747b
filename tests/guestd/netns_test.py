#!/usr/bin/env python3
"""symvirt-guestd against real interfaces, sockets and processes, without a VM.

Two network namespaces joined by a veth pair: its end in the first one is the passthrough NIC, deleted and made again as a re-plug
does. A Unix socket stands for the virtio-serial port. Needs root. usage: netns_test.py PATH_OF_GUESTD [TEST...]
A failing test keeps its work folder and names it.
"""
import json
import os
import socket
import subprocess
import sys
import time
import traceback

import guestd_world
from guestd_peers import LinePeer, Plugin
from guestd_world import SLOT, World, expect_failure, quiesce, resume, until


# --- devices ---------------------------------------------------------------------------------------------------------

def test_replug_gives_everything_back(w):
    w.up()
    w.ip("link", "set", "eth0", "mtu", "1400")
    w.ip("addr", "add", "10.99.7.1/32", "dev", "eth0", "label", "eth0:x")
    w.ip("route", "add", "10.100.0.0/16", "via", "10.99.0.2", "metric", "77", "mtu", "1300")
    w.ip("route", "add", "default", "via", "10.99.0.2", "table", "100")
    w.ip("-6", "route", "add", "fd98::/64", "via", "fd99::2")
    w.ip("rule", "add", "iif", "eth0", "table", "100", "pref", "900")
    w.ip("neigh", "add", "10.99.0.77", "lladdr", "02:00:00:00:00:77", "dev", "eth0", "nud", "permanent")

    def facts():
        routes = [w.ip("route", "show", "table", t) for t in ("main", "100")] + [w.ip("-6", "route", "show", "dev", "eth0")]
        addresses = [(a["local"], a["prefixlen"], a.get("label")) for a in json.loads(w.ip("-j", "addr", "show", "eth0"))[0]["addr_info"]
                     if a["scope"] != "link" or a["family"] == "inet"]
        mtu = json.loads(w.ip("-j", "link", "show", "eth0"))[0]["mtu"]
        return routes, sorted(addresses), mtu, w.ip("rule", "show"), w.ip("neigh", "show", "nud", "permanent")
    before = facts()
    w.host.call("device.let_go", epoch=0, slots=["hca0"])
    w.unplug()
    until("node.check says gone", lambda: not w.host.call("node.check", job=0)["healthy"])
    assert "no interface matching driver veth" in w.host.call("node.check", job=0)["reason"]
    waiting = w.host.ask("device.ready", slots=["hca0"])
    w.plug(name="eth9", mac="52:54:00:78:00:99")  # another host's device: other name, other MAC
    w.cable()
    slot = w.host.wait(waiting)["slots"][0]
    assert slot["netdev"] == "eth0" and slot["mac"] == "52:54:00:78:00:99", slot
    assert facts() == before, f"{facts()} != {before}"


def test_interface_is_set_up_before_anybody_asks(w):
    w.up()
    w.host.call("device.let_go", epoch=0, slots=["hca0"])
    w.unplug()
    w.plug(name="eth5")
    until("name, address and up without device.ready", lambda: "10.99.0.1/24" in w.ip("addr", "show", check=False) and
          "UP" in w.ip("link", "show", "eth0", check=False))
    started = time.monotonic()
    w.cable()
    w.host.call("device.ready", slots=["hca0"])
    assert time.monotonic() - started < 2


def test_no_carrier_is_not_ready_and_said(w):
    w.up(plug=False)
    w.plug()
    failure = expect_failure("DEADLINE", "no carrier", lambda: w.host.call("device.ready", slots=["hca0"], timeout_ms=300))
    assert "hca0" in failure.message
    waiting = w.host.ask("device.ready", slots=["hca0"])
    w.cable()
    assert w.host.wait(waiting)["slots"][0]["netdev"] == "eth0"
    w.cable("down")
    until("loss of carrier seen", lambda: "no carrier" in w.host.call("node.check", job=0)["reason"])
    w.cable("up")
    until("carrier back", lambda: w.host.call("node.check", job=0)["healthy"])


def test_it_announces_itself(w):
    w.up()
    w.host.call("device.let_go", epoch=0, slots=["hca0"])
    w.unplug()
    w.plug(mac="52:54:00:78:00:55")

    def sniff():
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        s.settimeout(5)
        return s
    sniffer = w.in_ns(w.peer_ns, sniff)
    w.cleanup.append(sniffer)
    w.cable()
    w.host.call("device.ready", slots=["hca0"])
    arp = advertisement = False
    while not (arp and advertisement):
        frame = sniffer.recv(2000)
        ours = frame[6:12] == bytes.fromhex("525400780055")
        # ARP whose sender is 10.99.0.1; ICMPv6 type 136 whose target is fd99::1
        arp |= ours and frame[12:14] == b"\x08\x06" and frame[28:32] == bytes([10, 99, 0, 1])
        advertisement |= ours and frame[12:14] == b"\x86\xdd" and frame[54] == 136 and frame[62:78] == socket.inet_pton(socket.AF_INET6, "fd99::1")


def test_ready_without_replug_answers_at_once(w):
    w.up()
    w.host.call("device.let_go", epoch=0, slots=["hca0"])  # detach failed on the host: the device never left
    started = time.monotonic()
    assert w.host.call("device.ready", slots=["hca0"])["slots"][0]["netdev"] == "eth0"
    assert time.monotonic() - started < 2
    expect_failure("NOT_FOUND", "hca9", lambda: w.host.call("device.ready", slots=["hca9"]))
    expect_failure("NOT_FOUND", "hca9", lambda: w.host.call("device.let_go", epoch=0, slots=["hca9"]))


def test_configured_routes_and_mtu(w):
    slot = dict(SLOT, mtu=1350, routes=["10.101.0.0/16 via 10.99.0.2", {"to": "10.102.0.0/16"}], addresses=["10.99.0.1/24"])
    w.up(slots=[slot])
    routes = w.ip("route", "show")
    assert "10.101.0.0/16 via 10.99.0.2 dev eth0" in routes and "10.102.0.0/16 dev eth0" in routes, routes
    assert "mtu 1350" in w.ip("link", "show", "eth0")
    assert w.host.call("node.check", job=0) == {
        "healthy": True, "reason": "", "network": ["10.99.0.0/24"], "quiesce": "tcp", "rdma": [], "soft_roce": False}


# --- rounds ----------------------------------------------------------------------------------------------------------

def test_rounds_over_all_steps_of_the_job(w):
    w.up()
    one, two, other = Plugin(w.socket, 7, 0), Plugin(w.socket, 7, 1, ranks=1), Plugin(w.socket, 8)
    assert one.registered == {"epoch": 0, "at_rest": False}
    before = time.time_ns()
    first = quiesce(w, 5, 1)
    assert first["members"] == 3 and first["held"] == 3 and first["more"] is True, first
    assert sorted((a["step"], a["rank"], a["payload"]) for a in first["answers"]) == [(0, 0, "p0"), (0, 1, "p1"), (1, 0, "p0")]
    assert before <= first["pauses_begun_ns"] <= time.time_ns()
    second = quiesce(w, 5, 2, payloads={"0": "x"})
    assert second["more"] is False
    assert one.log[-1][2]["payloads"] == {"0": "x"} and one.log[-1][2]["round"] == 2
    assert other.log == []
    out = resume(w, 5)
    assert out["members"] == 3 and out["more"] is False and one.held == two.held == 0
    assert resume(w, 4)["members"] == 0
    expect_failure("PRECONDITION", "resumed already", lambda: quiesce(w, 5, 3))
    expect_failure("PRECONDITION", "out of date", lambda: quiesce(w, 4, 1))


def test_a_repeated_request_is_one_request(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    plugin.delay = 0.3
    ids = [w.host.ask("job.quiesce", id_="same", job=7, epoch=5, round=1, lease_ms=5000, timeout_ms=3000) for _ in range(2)]
    assert w.host.wait(ids[0])["members"] == 2
    w.host.ask("job.quiesce", id_="same", job=7, epoch=5, round=1, lease_ms=5000, timeout_ms=3000)
    assert w.host.wait("same")["members"] == 2
    # Another id, the same round: answered from the record, the plugin is not asked again.
    assert quiesce(w, 5, 1)["members"] == 2
    assert plugin.methods().count("step.quiesce") == 1


def test_host_comes_back_on_a_new_connection(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    plugin.delay = 0.3
    w.host.ask("job.quiesce", id_="q", job=7, epoch=5, round=1, lease_ms=5000, timeout_ms=3000)
    w.host.close()
    w.host = w.port.accept()
    w.host.wait_event("hello")
    time.sleep(0.5)
    w.host.ask("job.quiesce", id_="q", job=7, epoch=5, round=1, lease_ms=5000, timeout_ms=3000)
    assert w.host.wait("q")["members"] == 2
    assert plugin.methods().count("step.quiesce") == 1


def test_an_empty_line_is_answered_with_hello(w):
    w.up()
    w.host.events.clear()
    w.host.sock.sendall(b"\n")
    assert w.host.wait_event("hello")["boot_id"]


def test_hello_is_said_at_most_once_a_second(w):
    w.up()
    time.sleep(1.1)
    w.host.events.clear()
    for _ in range(300):
        w.host.sock.sendall(b"\n")
        time.sleep(0.005)
    said = len(w.host.events)
    assert 1 <= said <= 4, said
    w.host.call("guest.ping")
    time.sleep(1.1)
    w.host.events.clear()
    w.host.sock.sendall(b"\n \n \n")  # only an empty line asks for it
    time.sleep(1.2)
    assert len(w.host.events) == 1, w.host.events


def test_a_silent_step_is_named(w):
    w.up()
    good, bad = Plugin(w.socket, 7, 0), Plugin(w.socket, 7, 3)
    bad.silent = True
    expect_failure("DEADLINE", "step 3", lambda: quiesce(w, 5, 1, timeout_ms=400))
    assert good.held == 5
    bad.silent = False
    assert resume(w, 5)["members"] == 4 and good.held == 0


def test_a_step_that_ends_during_the_round_is_an_answer(w):
    w.up()
    plugin = Plugin(w.socket, 7, 0)
    child = subprocess.Popen([sys.executable, "-c", f"""
import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
from guestd_peers import Plugin
import time
p = Plugin({w.socket!r}, 7, 1); p.silent = True
print("up", flush=True); time.sleep(60)"""], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    waiting = w.host.ask("job.quiesce", job=7, epoch=5, round=1, lease_ms=5000, timeout_ms=5000)
    time.sleep(0.2)
    child.kill()
    child.wait()
    assert w.host.wait(waiting)["members"] == 2 and plugin.held == 5


def test_a_plugin_that_reconnects_is_asked_again(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    plugin.silent = True
    waiting = w.host.ask("job.quiesce", job=7, epoch=5, round=1, lease_ms=5000, timeout_ms=5000)
    until("asked", lambda: plugin.log)
    plugin.close()
    time.sleep(0.2)
    again = Plugin(w.socket, 7)
    assert again.registered == {"epoch": 5, "at_rest": True}
    assert w.host.wait(waiting)["members"] == 2 and again.held == 5


def test_gate_holds_new_tasks(w):
    w.up()
    Plugin(w.socket, 7)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(w.socket)
    task = LinePeer(sock)
    task.call("task.enter", job=7, step=0, task=0)
    quiesce(w, 5, 1)
    waiting = task.ask("task.enter", job=7, step=1, task=0)
    task.call("task.enter", job=8, step=0, task=0)
    try:
        task.wait(waiting, timeout=0.3)
        raise AssertionError("a task entered during the rest")
    except TimeoutError:
        pass
    resume(w, 5)
    task.wait(waiting)


def test_plan_names_members_and_holders(w):
    w.up()
    client, _ = w.tcp_pair()
    plugin = Plugin(w.socket, 7)
    out = w.host.call("job.plan", job=7)
    assert out["jobs"] == [{"job": 7, "steps": [{"step": 0, "tasks": 2, "members": 2}]}], out
    ours = [h for h in out["holders"] if h["pid"] == os.getpid()]
    assert len(ours) == 1 and ours[0]["member"] and "10.99.0.1" in ours[0]["what"], out
    # A child that inherited a member's socket holds nothing of its own.
    child = subprocess.Popen(["sleep", "30"], pass_fds=[client.fileno()])
    out = w.host.call("job.plan", job=7)
    child.kill()
    child.wait()
    assert [h["member"] for h in out["holders"] if h["pid"] == child.pid] == [True] and out["refusals"] == [], out
    plugin.members = [1, 2]
    ours = [h for h in w.host.call("job.plan", job=0)["holders"] if h["pid"] == os.getpid()]
    assert ours[0]["member"] is False
    (refusal,) = w.host.call("job.plan", job=0)["refusals"]
    assert "(pid %d)" % os.getpid() in refusal and "10.99.0.1" in refusal and "srun --mpi=pmix" in refusal, refusal
    packet = w.in_ns(w.guest_ns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    packet.bind(("eth0", 3))
    client.close()
    ours = [h for h in w.host.call("job.plan", job=0)["holders"] if h["pid"] == os.getpid()]
    assert len(ours) == 1 and "packet socket" in ours[0]["what"], ours
    packet.close()


# --- TCP at rest -----------------------------------------------------------------------------------------------------

def test_tcp_rest_waits_for_acknowledgements(w):
    for local, remote in (("10.99.0.1", "10.99.0.2"), ("fd99::1", "fd99::2")):
        epoch = 5 if ":" not in local else 6
        if epoch == 5:
            w.up()
            Plugin(w.socket, 7)
        client, server = w.tcp_pair(local, remote)
        client.sendall(b"first")
        assert server.recv(100) == b"first"
        quiesce(w, epoch, 1)
        # The peer does not answer: what arrives is for a MAC that is not its own any more.
        mac = json.loads(w.ip("-j", "link", "show", "peer0", ns=w.peer_ns))[0]["address"]
        w.ip("link", "set", "peer0", "address", "52:54:00:00:00:99", ns=w.peer_ns)
        client.sendall(b"second")
        failure = expect_failure("DEADLINE", "1 TCP connection(s)", lambda: quiesce(w, epoch, 2, timeout_ms=400))
        assert local in failure.message and "1 unacknowledged" in failure.message
        waiting = w.host.ask("job.quiesce", job=7, epoch=epoch, round=2, lease_ms=9000, timeout_ms=8000)
        time.sleep(0.2)
        w.ip("link", "set", "peer0", "address", mac, ns=w.peer_ns)
        assert w.host.wait(waiting)["more"] is False
        assert server.recv(100) == b"second"
        resume(w, epoch)


def test_unread_data_and_a_closed_window_are_at_rest(w):
    w.up()
    Plugin(w.socket, 7)
    client, server = w.tcp_pair()
    client.setblocking(False)
    sent = 0
    try:
        while True:
            sent += client.send(b"x" * 65536)
    except BlockingIOError:
        pass
    server.sendall(b"unread")
    assert sent > 65536
    quiesce(w, 5, 1)
    assert quiesce(w, 5, 2, timeout_ms=3000)["more"] is False


def test_a_connection_survives_the_replug_without_back_off(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    client, server = w.tcp_pair()
    client.sendall(b"a")
    assert server.recv(1) == b"a"
    quiesce(w, 5, 1)
    quiesce(w, 5, 2)
    w.host.call("device.let_go", epoch=5, slots=["hca0"])
    w.unplug()
    time.sleep(4)
    w.plug(name="ethX", mac="52:54:00:78:00:33")
    w.cable()
    w.host.call("device.ready", slots=["hca0"])
    resume(w, 5)
    assert plugin.held == 0
    started = time.monotonic()
    client.sendall(b"b")
    assert server.recv(1) == b"b"
    server.sendall(b"c")
    assert client.recv(1) == b"c"
    assert time.monotonic() - started < 1.5, "TCP backed off"  # it would wait longer than the device was away


# --- lease -----------------------------------------------------------------------------------------------------------

def test_lease_runs_out_and_the_job_goes_on(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    quiesce(w, 5, 1, lease_ms=2000)
    for _ in range(4):
        time.sleep(0.7)
        w.host.call("job.renew", job=7, epoch=5, lease_ms=2000)
        assert plugin.held == 5
    until("resumed by guestd", lambda: plugin.held == 0, timeout=30)
    expect_failure("PRECONDITION", "not at rest", lambda: w.host.call("job.renew", job=7, epoch=5, lease_ms=2000))
    expect_failure("PRECONDITION", "no job is at rest", lambda: w.host.call("device.let_go", epoch=5, slots=["hca0"]))
    assert resume(w, 5)["more"] is False


def test_lease_does_not_resume_a_job_whose_device_is_away(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    quiesce(w, 5, 1, lease_ms=2000)
    quiesce(w, 5, 2, lease_ms=2000)
    w.host.call("device.let_go", epoch=5, slots=["hca0"])
    w.unplug()
    time.sleep(3)
    assert plugin.held == 5, "resumed without its device"
    w.plug(name="ethX")
    w.cable()
    until("resumed when the device came back", lambda: plugin.held == 0, timeout=30)
    assert "10.99.0.1/24" in w.ip("addr", "show", "eth0")


# --- restarts --------------------------------------------------------------------------------------------------------

def test_sigkill_in_the_middle_of_a_rest_loses_nothing(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    w.ip("route", "add", "10.100.0.0/16", "via", "10.99.0.2")
    quiesce(w, 5, 1, lease_ms=20000)
    quiesce(w, 5, 2, lease_ms=20000)
    w.host.call("device.let_go", epoch=5, slots=["hca0"])
    w.unplug()
    w.kill()
    plugin.close()
    w.start()
    again = Plugin(w.socket, 7, epoch_at_rest=5)
    assert again.registered == {"epoch": 5, "at_rest": True}
    w.host.call("job.renew", job=7, epoch=5, lease_ms=20000)
    expect_failure("PRECONDITION", "out of date", lambda: quiesce(w, 4, 1))
    w.plug(name="eth3")
    w.cable()
    w.host.call("device.ready", slots=["hca0"])
    assert "10.100.0.0/16 via 10.99.0.2 dev eth0" in w.ip("route", "show")
    assert resume(w, 5)["members"] == 2 and again.held == 0


def test_state_lost_is_learnt_from_the_step(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    quiesce(w, 5, 1)
    w.kill()
    plugin.close()
    os.unlink(f"{w.work}/guestd.json")
    w.start()
    again = Plugin(w.socket, 7, epoch_at_rest=5)
    assert again.registered == {"epoch": 5, "at_rest": True}
    assert resume(w, 5)["members"] == 2 and again.held == 0


def test_a_step_that_missed_the_resume_is_resumed(w):
    w.up()
    plugin = Plugin(w.socket, 7)
    quiesce(w, 5, 1)
    plugin.close()
    child = subprocess.Popen(["sleep", "0"])
    child.wait()
    w.host.call("job.resume", job=7, epoch=5, round=1, timeout_ms=500)
    again = Plugin(w.socket, 7, epoch_at_rest=5)
    until("straggler resumed", lambda: again.held == 0 and "step.resume" in again.methods())


def test_a_mangled_state_is_set_aside(w):
    w.up()
    w.kill()
    for text in ("", "{", '{"boot_id": 3}', '{"boot_id":"x","jobs":[{"job":"7"}]}'):
        with open(f"{w.work}/guestd.json", "w") as out:
            out.write(text)
        w.start()
        assert os.path.exists(f"{w.work}/guestd.json.bad")
        os.unlink(f"{w.work}/guestd.json.bad")
        assert w.host.call("guest.ping")["node"] == ""
        w.kill()


# --- the rest --------------------------------------------------------------------------------------------------------

def test_users_may_only_ask_for_health(w):
    w.up()
    os.chmod(w.work, 0o755)
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
import socket; from guestd_peers import LinePeer, Failure
s = socket.socket(socket.AF_UNIX); s.connect({w.socket!r}); p = LinePeer(s)
assert p.call("node.check", job=1)["healthy"]
for method, params in (("step.register", dict(job=1, step=0, uid=0, nspace="n", tasks=1, pid=1)), ("task.enter", dict(job=1, step=0, task=0)),
                       ("job.quiesce", dict(job=1)), ("guest.ping", {{}})):
    try:
        p.call(method, **params); raise SystemExit(method + " was allowed")
    except Failure as f:
        assert f.code == "PERMISSION", f
"""
    done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_a_user_cannot_fill_the_log(w):
    w.up()
    os.chmod(w.work, 0o755)
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
import socket; from guestd_peers import LinePeer, Failure
s = socket.socket(socket.AF_UNIX); s.connect({w.socket!r}); p = LinePeer(s)
for i in range(300):
    try:
        p.call("job.quiesce", job=1)
    except Failure as f:
        assert f.code == "PERMISSION", f
held = []
for i in range(200):
    t = socket.socket(socket.AF_UNIX); t.connect({w.socket!r}); held.append(t)
"""
    done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert w.host.call("guest.ping")["node"] == "v1"
    with open(f"{w.work}/guestd.log") as log:
        refused = [line for line in log if "refused" in line]
    assert 2 <= len(refused) <= 50, f"{len(refused)} lines"
    assert any("too many" in line for line in refused), refused[-1]


def test_nonsense_on_either_side_does_no_harm(w):
    w.up()
    for line in (b"", b"{", b"[]", b"3", b'{"id":1}', b'{"id":"a"}', b'{"id":"a","method":7}', b"[" * 100000, b'{"a":' * 1000,
                 b"\xff\xfe\x00", b'{"id":"' + b"x" * 300 + b'","method":"guest.ping"}'):
        w.host.sock.sendall(line + b"\n")
        s = socket.socket(socket.AF_UNIX)
        s.connect(w.socket)
        s.sendall(line + b"\n")
        s.close()
    w.host.sock.sendall(b"y" * (9 << 20) + b"\n")
    assert w.host.call("guest.ping")["node"] == "v1"
    expect_failure("INVALID_ARGUMENT", "no.such", lambda: w.host.call("no.such"))
    expect_failure("INVALID_ARGUMENT", "lease_ms: missing", lambda: w.host.call("job.quiesce", job=1, epoch=1, round=1, timeout_ms=1))


def test_start_node_runs_once_a_boot(w):
    w.config(start_command=["/bin/sh", "-c", f"echo x >> {w.work}/started"])
    w.up(plug=False)
    assert w.host.call("guest.start_node") == {"started": True}
    assert w.host.call("guest.start_node") == {"started": False}
    w.kill()
    w.start()
    assert w.host.call("guest.start_node") == {"started": False}
    assert open(f"{w.work}/started").read() == "x\n"


def test_start_node_that_fails_may_be_tried_again(w):
    w.config(start_command=["/bin/sh", "-c", f"test -e {w.work}/good"])
    w.up(plug=False)
    expect_failure("REFUSED", "exit code 1", lambda: w.host.call("guest.start_node"))
    open(f"{w.work}/good", "w").close()
    assert w.host.call("guest.start_node") == {"started": True}


def test_two_guestd_do_not_share_a_socket(w):
    w.up(plug=False)
    done = subprocess.run([guestd_world.GUESTD, "--config", f"{w.work}/guestd.toml", "--foreground"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "another guestd" in done.stderr, done
    assert w.host.call("guest.ping")["node"] == "v1"


def test_configuration_mistakes_are_named(w):
    def check(text):
        with open(f"{w.work}/bad.toml", "w") as out:
            out.write(text)
        done = subprocess.run([guestd_world.GUESTD, "--config", f"{w.work}/bad.toml", "--check-config"], capture_output=True, text=True, timeout=20)
        return done.returncode, done.stderr
    assert check("")[0] == 0
    code, text = check("\nsockt = 'x'\n")
    assert code == 2 and "bad.toml:2:" in text and "sockt" in text, text


def test_clock_is_left_alone_when_it_is_right(w):
    w.up(plug=False)
    assert w.host.call("guest.set_clock", time_ns=time.time_ns()) == {"stepped_ms": 0}
    expect_failure("INVALID_ARGUMENT", "time_ns", lambda: w.host.call("guest.set_clock", time_ns=0))


def main():
    guestd_world.GUESTD = os.path.abspath(sys.argv[1])
    if os.geteuid() != 0:
        print("needs root")
        return 77
    wanted = sys.argv[2:]
    tests = [(n, f) for n, f in globals().items() if n.startswith("test_") and (not wanted or n in wanted or n[5:] in wanted)]
    failed = []
    for name, body in tests:
        started = time.monotonic()
        w = World()
        try:
            body(w)
            w.end()
            print(f"pass {name[5:]} ({time.monotonic() - started:.1f} s)", flush=True)
            w.remove(keep=False)
        except BaseException:
            failed.append(name[5:])
            print(f"FAIL {name[5:]}, kept in {w.work}; again: {sys.argv[0]} {guestd_world.GUESTD} {name[5:]}", flush=True)
            traceback.print_exc()
            w.remove(keep=True)
    print(f"{len(tests) - len(failed)} passed, {len(failed)} failed {' '.join(failed)}")
    return 1 if failed or not tests else 0


if __name__ == "__main__":
    sys.exit(main())
