#!/usr/bin/env python3
"""symvirt-health as slurmd's HealthCheckProgram: a failing check alone drains its node, and nobody else's reason is touched.

Run by tests/slurm/cluster with SLURM_TEST_BUILD set (ctest: slurm_health). Each node has a folder of
site checks of its own.
"""

import os
import pathlib
import subprocess
import sys
import time

DIR = pathlib.Path(os.environ["SLURM_TEST_DIR"])
failures = 0


def check(what, ok, detail=""):
    global failures
    print(("ok      " if ok else "FAILED  ") + what + (f": {detail}" if detail and not ok else ""), flush=True)
    if not ok:
        failures += 1


def node(name):
    """State and reason, as scontrol shows them."""
    line = subprocess.run(["scontrol", "-o", "show", "node", name], capture_output=True, text=True, timeout=30, check=True).stdout
    state = line.split(" State=", 1)[1].split(" ", 1)[0]
    reason = line.split(" Reason=", 1)[1].split(" [", 1)[0] if " Reason=" in line else ""
    return state, reason


def until(what, condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.2)
    check(what, condition())


def update(name, *words):
    subprocess.run(["scontrol", "update", f"nodename={name}", *words], timeout=30, check=True)


def configure(name, checks):
    text = f'state_file = "{DIR}/health-{name}.json"\n[memory]\nenabled = false\n[checks]\nfolder = "{checks}"\ntimeout = 2\n'
    file = DIR / "etc" / f"health-{name}.toml"
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)


def site_check(folder, script):
    folder.mkdir(exist_ok=True)
    new = folder.parent / "new-check"
    new.write_text("#!/bin/sh\n" + script)
    new.chmod(0o755)
    new.rename(folder / "power")


folder = {name: DIR / f"checks-{name}" for name in ("hv1", "hv2", "v1")}
for name in folder:
    site_check(folder[name], "exit 0\n")
    configure(name, folder[name])
time.sleep(5)
for name in folder:
    check(f"{name}: healthy, in service", node(name) == ("IDLE", ""), str(node(name)))

site_check(folder["hv1"], "echo supply 2 has failed\nexit 1\n")
until("hv1: drained by its check alone", lambda: "DRAIN" in node("hv1")[0])
check("hv1: the reason is ours and says what", node("hv1")[1].startswith("symvirt: ") and "supply 2 has failed" in node("hv1")[1], node("hv1")[1])
check("others stay", node("hv2")[0] == "IDLE" and node("v1")[0] == "IDLE")

update("hv2", "state=drain", "reason=NHC: disk is full")
site_check(folder["hv2"], "echo supply 1 has failed\nexit 1\n")
time.sleep(6)
check("hv2: drained by somebody else, whose reason stays", node("hv2")[1] == "NHC: disk is full", node("hv2")[1])

before = node("hv1")
site_check(folder["hv1"], "exit 0\n")
time.sleep(5)
check("hv1: well again, but it is for people to say so", node("hv1") == before, str(node("hv1")))

(DIR / "etc" / "health-v1.toml").write_text("this is ] not TOML\n")
site_check(folder["v1"], "echo never read; exit 1\n")
time.sleep(5)
check("v1: a broken configuration drains nothing", node("v1") == ("IDLE", ""), str(node("v1")))
configure("v1", folder["v1"])
site_check(folder["v1"], "sleep 100\n")
until("v1: a check that hangs is a failing one", lambda: "DRAIN" in node("v1")[0])
check("v1: and says so", "no answer within 2 s" in node("v1")[1], node("v1")[1])

print(f"{failures} failures")
sys.exit(1 if failures else 0)
