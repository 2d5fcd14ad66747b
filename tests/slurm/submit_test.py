#!/usr/bin/env python3
"""job_submit.lua, the plugin's options and symvirt-prolog as a user meets them: sbatch against a real slurmctld.

Run by tests/slurm/cluster with SLURM_TEST_BUILD set (ctest: slurm_submit). The one machine plays all nodes; it is "a VM" while a
guestd (a fake one) listens on /run/symvirt/guestd.sock.
"""

import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "fakes"))
from fake_guestd import FakeGuestd  # noqa: E402

SOCKET = "/run/symvirt/guestd.sock"
DIR = pathlib.Path(os.environ["SLURM_TEST_DIR"])
failures = 0


def run(*argv, env=None):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
                          env={**os.environ, **(env or {})})
    return done.returncode, done.stdout.strip()


def sbatch(*options, env=None):
    return run("sbatch", "--parsable", "-o", f"{DIR}/out-%j", *options, "--wrap", "echo ran; env | grep SYMVIRT", env=env)


def field(kind, name, key):
    line = run("scontrol", "-o", "show", kind, name)[1]
    return line.split(f" {key}=", 1)[1].split(" ", 1)[0] if f" {key}=" in line else ""


def rest(kind, name, key):
    """A value with blanks in it: up to the next "Word=" or the end."""
    line = run("scontrol", "-o", "show", kind, name)[1]
    if f" {key}=" not in line:
        return ""
    words = line.split(f" {key}=", 1)[1].split(" ")
    value = [words[0]]
    for word in words[1:]:
        if "=" in word and word.split("=")[0][:1].isupper():
            break
        value.append(word)
    return " ".join(value)


def until(what, condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            check(what, True)
            return True
        time.sleep(0.2)
    check(what + f" within {seconds} s", False)
    return False


def check(what, ok, detail=""):
    global failures
    print(("ok      " if ok else "FAILED  ") + what + (f": {detail}" if detail and not ok else ""), flush=True)
    if not ok:
        failures += 1


def refused(what, words, *options, env=None):
    code, said = sbatch(*options, env=env)
    check(what + ": refused", code != 0, said)
    check(what + ": says " + words, words in said, said)


def submitted(what, *options, env=None):
    code, said = sbatch(*options, env=env)
    check(what + ": accepted", code == 0, said)
    return said if code == 0 else "0"


def options_and_lua():
    refused("plain job for the default partition", "submit with --symvirt")
    refused("plain job for vm", "submit with --symvirt", "-p", "vm")
    refused("unknown class", "standard", "--symvirt=gold")
    refused("host partition", "leave out -p", "--symvirt", "-p", "hosts")
    refused("host partition from the environment", "leave out -p", "--symvirt", env={"SBATCH_PARTITION": "hosts"})
    refused("ft without --symvirt", "needs --symvirt", "-p", "hosts", "--symvirt-ft=none")

    job = submitted("plain job on hosts", "-p", "hosts", "-H")
    check("plain job is left as it is", rest("job", job, "AdminComment") == "" and field("job", job, "Features") == "(null)")
    job = submitted("--symvirt", "-H", "--symvirt", "--symvirt-ft=none", "--symvirt-quiesce-timeout=77", "--comment=mine")
    check("partition", field("job", job, "Partition") == "vm", field("job", job, "Partition"))
    check("class is a feature", field("job", job, "Features") == "standard", field("job", job, "Features"))
    comment = rest("job", job, "AdminComment").strip()
    check("symvirtd's note", comment == "symvirt: class=standard ft=none quiesce_timeout=77", comment)
    check("the user's comment", field("job", job, "Comment") == "mine")
    code, said = run("scontrol", "update", f"jobid={job}", "partition=hosts")
    # Slurm 22.05 does not show what the script says to a change.
    check("it stays in vm", code != 0 and field("job", job, "Partition") == "vm", said)
    job = submitted("SYMVIRT=1", "-H", env={"SYMVIRT": "1"})
    check("SYMVIRT=1: partition", field("job", job, "Partition") == "vm")
    job = submitted("--no-symvirt", "-H", "-p", "hosts", "--no-symvirt", env={"SYMVIRT": "1"})
    check("--no-symvirt: partition", field("job", job, "Partition") == "hosts")
    code, said = run("timeout", "20", "srun", "--symvirt=gold", "true")
    check("srun: unknown class refused", code != 0 and "gold" in said, said)
    run("scancel", "-u", "root")


def prolog():
    # No guestd, no virtio port: a bare host.
    job = submitted("--symvirt on what is no VM", "--symvirt")
    until("bare host: the job is held", lambda: field("job", job, "Reason") in ("job_requeued_in_held_state", "JobHeldUser", "JobHeldAdmin"))
    time.sleep(2)
    check("bare host: nothing ran", "ran" not in output(job), output(job))
    check("bare host: stays in service", field("node", "v1", "State") in ("IDLE", "ALLOCATED", "IDLE+COMPLETING"), field("node", "v1", "State"))
    run("scancel", job)
    plain = submitted("plain job there", "-p", "hosts")
    until("plain job runs", lambda: "ran" in output(plain))

    guestd = FakeGuestd(SOCKET)
    guestd.healthy, guestd.reason = False, "hca0: no carrier"
    until("v1 idle", lambda: field("node", "v1", "State") == "IDLE")
    job = submitted("--symvirt in a VM without its device", "--symvirt")
    until("ill VM: drained", lambda: "DRAIN" in field("node", "v1", "State"), 60)
    reason = rest("node", "v1", "Reason").split(" [")[0]
    check("ill VM: the node says why", reason == "symvirt: hca0: no carrier", reason)
    until("ill VM: requeued, not held", lambda: field("job", job, "JobState") == "PENDING" and field("job", job, "Priority") != "0")
    check("ill VM: nothing ran", "ran" not in output(job), output(job))
    run("scancel", job)

    run("scontrol", "update", "nodename=v1", "state=resume")
    guestd.healthy = True
    until("v1 idle again", lambda: field("node", "v1", "State") == "IDLE")
    job = submitted("--symvirt in a healthy VM", "--symvirt")
    until("healthy VM: runs", lambda: "ran" in output(job))
    check("the script knows", "SLURM_SPANK_SYMVIRT=" in output(job), output(job))
    guestd.stop()


def output(job):
    try:
        return (DIR / f"out-{job}").read_text()
    except OSError:
        return ""


options_and_lua()
prolog()
print(f"{failures} failures")
sys.exit(1 if failures else 0)
