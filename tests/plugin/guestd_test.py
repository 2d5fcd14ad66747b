"""The guest's whole side, real from the ranks up to symvirt-guestd; only noded and the virtio-serial port are the test.

    sudo python3 tests/plugin/guestd_test.py --objects build/lib/symvirt --rank build/tests/symvirt_plugin_rank \
        --guestd build/node-helper/guest/symvirt-guestd

noded's end of the port is a Unix socket (guestd.toml: port_path). Nodes as in plugin_test.py.
"""

import argparse
import glob
import json
import os
import re
import shutil
import socket
import statistics
import sys
import threading
import time

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]
import testbed  # noqa: E402

parser = argparse.ArgumentParser()
for name in ("objects", "rank", "guestd"):
    parser.add_argument(f"--{name}", required=True)
options = None


class Port:
    """noded's end: one JSON object a line, one question at a time."""

    def __init__(self, path):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(10)
        self.listener, self.buffer, self.ids = listener, b"", 0

    def open(self):
        self.sock = self.listener.accept()[0]
        self.sock.settimeout(30)
        self.sock.sendall(b"\n")

    def call(self, method, **params):
        self.ids += 1
        wanted = f"{id(self)}-{self.ids}"
        self.sock.sendall(json.dumps({"id": wanted, "method": method, "params": params}).encode() + b"\n")
        while True:
            while b"\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\n", 1)
                message = json.loads(line) if line.strip() else {}
                if message.get("id") == wanted:
                    if "error" in message:
                        raise AssertionError(f"{method}: {message['error']}")
                    return message["result"]
            data = self.sock.recv(65536)
            if not data:
                raise AssertionError(f"{method}: guestd closed the port")
            self.buffer += data


def everywhere(ports, method, **params):
    results, errors = [None] * len(ports), []

    def one(i):
        try:
            results[i] = ports[i].call(method, **params)
        except Exception as error:  # noqa: BLE001: raised below, in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(ports))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def start_guestds(bed):
    ports = []
    for i, node in enumerate(bed.nodes, 1):
        pid = str(bed.slurmds[node].pid)
        port = Port(f"{bed.dir}/port-{node}")
        bed.write(
            f"guestd-{node}.toml",
            f'port_path = "{bed.dir}/port-{node}"\nstate = "{bed.dir}/run-{node}/state.json"\nlog_level = "debug"\n',
        )
        bed.spawn(
            f"guestd-{node}", "nsenter", "-t", pid, "-n", "-u", "-m", "--",
            f"{bed.dir}/symvirt-guestd", "--config", f"{bed.dir}/guestd-{node}.toml",
        )  # fmt: skip
        port.open()
        link = json.loads(testbed.output("nsenter", "-t", pid, "-n", "ip", "-j", "link", "show", "fab0"))
        address = f"10.78.0.{100 + i}/24"
        slot = {"slot": "fabric0", "match": {"mac": link[0]["address"]}, "addresses": [address], "quiesce": "tcp"}
        port.call("guest.configure", node=node, slots=[slot])
        port.call("device.ready", slots=["fabric0"], timeout_ms=10000)
        ports.append(port)
    return ports


def states(pid):
    found = set()
    for path in glob.glob(f"/proc/{pid}/task/*/stat"):
        with open(path, encoding="utf-8", errors="replace") as f:
            found.add(f.read().rsplit(")", 1)[1].split()[0])
    return found


def members(ports, job):
    return sum(s["members"] for p in ports for j in p.call("job.plan", job=job)["jobs"] for s in j["steps"])


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def moves(bed, ports):
    """Ten times what a move does to the ranks, then a lease that runs out; the ring's sum is right in the end."""
    run = bed.popen("srun", "--symvirt", "--mpi=pmix", "-N2", "-n4", "--ntasks-per-node=2", "--time=1", f"{bed.dir}/rank", "ring", f"{bed.dir}/until")
    job = 1
    bed.wait(lambda: members(ports, job) == 4, 20, "members")
    time.sleep(0.3)  # connections are there
    for port in ports:
        plan = port.call("job.plan", job=job)
        check(not plan["refusals"], plan)
        check(plan["holders"] and all(h["member"] for h in plan["holders"]), f"holders that are no members: {plan}")
    quiesce, resume = [], []
    for epoch in range(1, 11):
        began = time.monotonic()
        first = everywhere(ports, "job.quiesce", job=job, epoch=epoch, round=1, lease_ms=20000, timeout_ms=10000)
        check(all(r["more"] and r["members"] == 2 for r in first), first)
        second = everywhere(ports, "job.quiesce", job=job, epoch=epoch, round=2, lease_ms=20000, timeout_ms=10000)
        quiesce.append(time.monotonic() - began)
        check(all(not r["more"] and r["held"] == 2 for r in second), second)
        for result in second:
            for answer in result["answers"]:
                check(answer["state"] == "rest" and states(answer["pid"]) == {"T"}, answer)
        time.sleep(0.05)
        began = time.monotonic()
        third = everywhere(ports, "job.resume", job=job, epoch=epoch, round=1, timeout_ms=10000)
        resume.append(time.monotonic() - began)
        check(all(not r["more"] and r["members"] == 2 for r in third), third)
        time.sleep(0.05)
    everywhere(ports, "job.quiesce", job=job, epoch=11, round=1, lease_ms=3000, timeout_ms=10000)
    pids = [a["pid"] for r in third for a in r["answers"]]
    check(all(states(pid) == {"T"} for pid in pids), "ranks are held")
    bed.wait(lambda: not any("T" in states(pid) for pid in pids), 30, "end of the lease")
    bed.write("until", "")
    out, err = run.communicate(timeout=40)
    check(run.returncode == 0 and len(re.findall(r"^ring .* ok$", out, re.M)) == 4, out + err)
    print(f"  both rounds of quiesce, 2 nodes x 2 ranks: median {1000 * statistics.median(quiesce):.1f} ms")
    print(f"  resume: median {1000 * statistics.median(resume):.1f} ms")


def gate(bed, ports):
    """A step that starts while its job is at rest waits, and runs afterwards."""
    script = f"srun --overlap -n2 --mpi=pmix {bed.dir}/rank spin 5 &\nsleep 1.5\nsrun --overlap echo second\nwait\n"
    name = f"{bed.dir}/out/gate"
    with open(f"{name}.sh", "w", encoding="utf-8") as f:
        f.write("#!/bin/bash\n" + script)
    submitted = bed.as_user("sbatch", "--parsable", "--symvirt", "-w", "n1", "-N1", "-n2", "-o", f"{name}.out", f"{name}.sh")
    job = int(submitted.stdout)
    bed.wait(lambda: members(ports[:1], job) == 2, 20, "members")
    ports[0].call("job.quiesce", job=job, epoch=20, round=1, lease_ms=20000, timeout_ms=5000)
    time.sleep(3)
    with open(f"{name}.out", encoding="utf-8") as f:
        check("second" not in f.read(), "the new step ran while its job was at rest")
    ports[0].call("job.resume", job=job, epoch=20, round=1, timeout_ms=5000)

    def ran():
        with open(f"{name}.out", encoding="utf-8") as f:
            return "second" in f.read()

    bed.wait(ran, 10, "second step")
    bed.wait(lambda: not testbed.output("squeue", "-h", env=bed.env), 30, "end of the job")


def main():
    global options
    options = parser.parse_args()
    testbed.enter()
    bed = testbed.Testbed("")
    # The nodes have a /tmp of their own, and the build may be below the machine's.
    for file in (options.rank, options.guestd, *glob.glob(f"{options.objects}/*.so")):
        shutil.copy(file, bed.dir)
    os.rename(f"{bed.dir}/{os.path.basename(options.rank)}", f"{bed.dir}/rank")
    bed.plugstack(f"optional {bed.dir}/spank_symvirt.so\n")
    try:
        ports = start_guestds(bed)
        for test in (moves, gate):
            test(bed, ports)
            print(f"ok {test.__name__}: {test.__doc__}")
    except Exception:
        print(f"work folder with all logs: {bed.dir}; again: sudo {' '.join([sys.executable, *sys.argv])}")
        raise
    finally:
        bed.down()
    shutil.rmtree(bed.dir)


if __name__ == "__main__":
    main()
