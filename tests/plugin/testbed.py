"""A control node and two compute nodes of real munge and Slurm daemons in namespaces, without any VM.

Everything lives in a PID and mount namespace of its own (enter() re-executes the script there), so that nothing
survives the test and two runs do not meet. Each node has a network and UTS namespace, two networks (management
10.77.0.0/24 and "fabric" 10.78.0.0/24), and its own /run/symvirt with a fake guestd in it.
"""

import os
import pwd
import shutil
import subprocess
import sys
import time

USER = "games"  # any unprivileged account of every Debian system; jobs run as it
MARK = "SYMVIRT_TESTBED_INSIDE"


def enter():
    """Re-executes the calling script in fresh namespaces; returns inside them."""
    if os.environ.get(MARK):
        return
    if os.geteuid() != 0:
        print("needs root: namespaces and slurmd", file=sys.stderr)
        sys.exit(77)
    os.environ[MARK] = "1"
    os.execvp(
        "unshare",
        ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        + [sys.executable]
        + sys.argv,
    )


def run(*args, check=True, timeout=30, **kwargs):
    return subprocess.run(args, check=check, timeout=timeout, text=True, **kwargs)


def output(*args, **kwargs):
    return run(*args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs).stdout


SLURM_CONF = """\
ClusterName=plugintest
SlurmctldHost=ctl(10.77.0.10)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
SlurmdDebug=debug
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=5,batch_sched_delay=0,defer_batch
PlugStackConfig={dir}/plugstack.conf
{extra}
NodeName=n1 NodeAddr=10.77.0.11 CPUs=16 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeAddr=10.77.0.12 CPUs=16 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Testbed:
    def __init__(self, plugstack, slurm_conf_extra="", job_submit_lua=None, nodes=2, fence="ring"):
        self.dir = os.environ.get("SYMVIRT_TESTBED_DIR") or f"/var/tmp/symvirt-plugin-{os.urandom(4).hex()}"
        os.makedirs(self.dir, exist_ok=True)
        os.chmod(self.dir, 0o755)
        self.children = []
        self.slurmds = {}
        self.env = dict(os.environ, SLURM_CONF=f"{self.dir}/slurm.conf", HOME="/tmp")
        self.env.pop(MARK)
        self.write("slurm.conf", SLURM_CONF.format(dir=self.dir, extra=slurm_conf_extra))
        self.write("mpi.conf", f"PMIxCollFence={fence}\n")
        self.write("cgroup.conf", "CgroupPlugin=cgroup/v1\n")
        if job_submit_lua:
            self.write("job_submit.lua", job_submit_lua)
        self.plugstack(plugstack)
        os.makedirs(f"{self.dir}/out", exist_ok=True)
        os.chmod(f"{self.dir}/out", 0o777)
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self._network()
        self._munge()
        self._daemons()

    def write(self, name, text):
        with open(f"{self.dir}/{name}", "w", encoding="utf-8") as f:
            f.write(text)

    def plugstack(self, text):
        """In force for commands and steps started from now on: Slurm reads it every time."""
        self.write("plugstack.conf", text)

    def spawn(self, name, *args, **kwargs):
        log = open(f"{self.dir}/{name}.out", "w", encoding="utf-8")
        child = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, **kwargs)
        self.children.append(child)
        return child

    def _network(self):
        run("hostname", "ctl")
        for link in ("lo",):
            run("ip", "link", "set", link, "up")
        for bridge in ("mgmt", "fabric"):
            run("ip", "link", "add", bridge, "type", "bridge")
            run("ip", "link", "set", bridge, "up")
        run("ip", "addr", "add", "10.77.0.10/24", "dev", "mgmt")
        hosts = f"{self.dir}/hosts"
        self.write("hosts", "127.0.0.1 localhost\n10.77.0.10 ctl\n10.77.0.11 n1\n10.77.0.12 n2\n")
        run("mount", "--bind", hosts, "/etc/hosts")
        for mount in ("/run", "/dev/shm"):
            run("mount", "-t", "tmpfs", "-o", "mode=1777" if mount == "/dev/shm" else "mode=755", "tmpfs", mount)

    def _munge(self):
        path = f"{self.dir}/munge"
        os.makedirs(path, exist_ok=True)
        with open(f"{path}/key", "wb") as f:
            f.write(os.urandom(128))
        os.chmod(f"{path}/key", 0o400)
        shutil.chown(path, "munge", "munge")
        shutil.chown(f"{path}/key", "munge", "munge")
        os.chmod(path, 0o755)
        self.spawn(
            "munged", "runuser", "-u", "munge", "--", "/usr/sbin/munged", "--force", "--foreground",
            f"--key-file={path}/key", f"--socket={path}/socket", f"--pid-file={path}/pid",
            f"--log-file={path}/log", f"--seed-file={path}/seed",
        )  # fmt: skip
        self.wait(lambda: os.path.exists(f"{path}/socket"), 10, "munged")

    def _daemons(self):
        os.makedirs(f"{self.dir}/state", exist_ok=True)
        self.spawn("slurmctld", "slurmctld", "-D", "-c", "-f", f"{self.dir}/slurm.conf")
        for i, node in enumerate(self.nodes, 1):
            rundir = f"{self.dir}/run-{node}"
            os.makedirs(rundir, exist_ok=True)
            script = f"""
                hostname {node}; ip link set lo up
                mkdir -p /run/symvirt; mount --bind {rundir} /run/symvirt
                # Slurm keeps PMIx sockets of a step there, under a name that is the same on every node
                mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /dev/shm
                until [ -e /sys/class/net/fab0 ] || ip link show fab0 >/dev/null 2>&1; do sleep 0.05; done
                ip addr add 10.77.0.{10 + i}/24 dev eth0; ip link set eth0 up
                ip addr add 10.78.0.{100 + i}/24 dev fab0; ip link set fab0 up
                exec slurmd -D -N {node} -f {self.dir}/slurm.conf"""
            child = self.spawn(f"slurmd-{node}", "unshare", "--net", "--uts", "--mount", "bash", "-c", script)
            self.slurmds[node] = child
            own = os.readlink("/proc/self/ns/net")
            self.wait(lambda pid=child.pid: os.readlink(f"/proc/{pid}/ns/net") != own, 5, "namespace")
            for bridge, name in (("mgmt", "eth0"), ("fabric", "fab0")):
                peer = f"{bridge}-{node}"
                run("ip", "link", "add", peer, "type", "veth", "peer", "name", name, "netns", str(child.pid))
                run("ip", "link", "set", peer, "master", bridge, "up")
        self.wait(self._idle, 30, "nodes to become idle")

    def _idle(self):
        states = output("sinfo", "-h", "-N", "-o", "%T", env=self.env, check=False).split()
        return len(states) >= len(self.nodes) and states[: len(self.nodes)] == ["idle"] * len(self.nodes)

    def wait(self, condition, seconds, what):
        end = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                raise TimeoutError(f"no {what} after {seconds} s; logs in {self.dir}")
            time.sleep(0.05)

    def as_user(self, *command, env=None, timeout=60):
        """Runs a command as the ordinary user in a writable folder; CompletedProcess with stdout and stderr."""
        return subprocess.run(
            command, cwd=f"{self.dir}/out", env={**self.env, **(env or {})}, timeout=timeout, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, user=USER,
            group=pwd.getpwnam(USER).pw_gid, extra_groups=[],
        )  # fmt: skip

    def popen(self, *command, env=None):
        return subprocess.Popen(
            command, cwd=f"{self.dir}/out", env={**self.env, **(env or {})}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, user=USER, group=pwd.getpwnam(USER).pw_gid,
            extra_groups=[],
        )  # fmt: skip

    def sbatch_wait(self, *args, script, env=None, timeout=60):
        """Submits with --wait; (submission's CompletedProcess, the job's output)."""
        name = f"{self.dir}/out/job-{os.urandom(4).hex()}"
        with open(f"{name}.sh", "w", encoding="utf-8") as f:
            f.write("#!/bin/bash\n" + script)
        os.chmod(f"{name}.sh", 0o755)
        done = self.as_user("sbatch", "--wait", "-o", f"{name}.out", *args, f"{name}.sh", env=env, timeout=timeout)
        text = ""
        if os.path.exists(f"{name}.out"):
            with open(f"{name}.out", encoding="utf-8", errors="replace") as f:
                text = f.read()
        return done, text

    def down(self):
        for child in reversed(self.children):
            child.terminate()
        for child in self.children:
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
