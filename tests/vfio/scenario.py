"""The main path: a VM with a real passthrough device moves to another host and gets that host's device."""
import concurrent.futures
import os
import time

import failures
from world import GUEST_ADDRESS, HERE, Failed, host_mac

VM = "v1"
SLOT = {"slot": "hca0", "match": {"driver": "e1000e"}, "addresses": [f"{GUEST_ADDRESS}/24"], "quiesce": "tcp"}


def traffic(world, boot_id, mac, seconds=120):
    """Datagrams of this boot of the guest reach the peer, and the peer's answers the guest, over the NIC with this MAC."""
    begun = time.monotonic()

    def both_ways():
        heard = [h for h in world.peer.since(begun) if h[1] == boot_id]
        return len(heard) >= 3 and heard[-1][3] > heard[0][3]

    world.until(seconds, f"traffic with the guest, boot id {boot_id}", both_ways, every=0.2)
    if world.peer.mac() != mac:
        raise Failed(f"the guest's address is at {world.peer.mac()}, not at the passthrough device's {mac}")


def boot(world, host):
    """A VM on this host, with its device from the first second; returns its boot id."""
    with open(os.path.join(HERE, "guest.xml"), encoding="utf-8") as xml:
        text = xml.read().replace("@TSC_KHZ@", world.tsc_khz)
    world.call(host, "device.reserve", {"vm": VM, "slots": [{"slot": "hca0", "gres": "hca"}], "op": "1/reserve/v1/1"})
    world.call(host, "vm.start", {"vm": VM, "xml": text, "op": "1/start/v1/1"}, 120)
    world.step("VM started", host)
    attached = world.call(host, "device.attach", {"vm": VM, "op": "1/attach/v1/1"}, 120)["attached"]
    world.step("device attached", attached[0]["device"])
    device = world.device(host, "hca0")
    world.check(device["driver"] == "vfio-pci" and device["state"] == "attached", f"the host's vfio-pci has it: {device}")
    world.until(240, "symvirt-guestd of the nested guest",
                lambda: world.call(host, "vm.info", {"vm": VM})["guest_connected"], every=1)
    boot_id = world.until(60, "guest.ping", lambda: world.guest(host, VM, "guest.ping"))["boot_id"]
    world.step("guest up: kernel and symvirt-guestd", boot_id)
    world.guest(host, VM, "guest.configure", {"node": VM, "slots": [SLOT]})
    ready = world.guest(host, VM, "device.ready", {"slots": ["hca0"]}, 120)["slots"][0]
    world.step("link: the guest has the device", ready)
    traffic(world, boot_id, host_mac(host))
    world.step("traffic with the peer outside")
    return boot_id


def refused_migration(world, boot_id, source, target):
    before = world.call(source, "vm.info", {"vm": VM})
    world.refused("PRECONDITION", [VM, f"hca0 of {source}", "device.detach"], source, "vm.migrate", {"vm": VM, "to": target, "op": "2/migrate/v1/1"})
    world.step("migration with the device refused")
    after = world.call(source, "vm.info", {"vm": VM})
    world.check(before == after and after["state"] == "running", "the VM is as it was before the refused migration")
    world.check(world.call(target, "vm.info", {"vm": VM})["state"] == "absent", f"{target} has not seen it")
    traffic(world, boot_id, host_mac(source))
    world.step("traffic has gone on")


def detach(world, source):
    world.guest(source, VM, "device.let_go", {"epoch": 0, "slots": ["hca0"]})
    world.step("guest has let go of the device")
    detached = world.call(source, "device.detach", {"vm": VM, "op": "3/detach/v1/1"}, 120)["detached"]
    world.step("detach asked for, to DEVICE_REMOVED", detached)
    world.until(30, f"hca0 of {source} with its host driver", lambda: world.device(source, "hca0")["driver"] == "e1000e", every=0.1)
    world.step("device back with its host driver")


def move(world, boot_id, source, target):
    known = world.call(source, "vm.info", {"vm": VM})["models"]
    world.call(target, "device.reserve", {"vm": VM, "slots": [{"slot": "hca0", "gres": "hca"}], "models": known, "op": "4/reserve/v1/1"})
    world.step("device of the other host reserved")
    moved = world.call(source, "vm.migrate", {"vm": VM, "to": target, "op": "4/migrate/v1/1"}, 240)
    world.step("migrated", f"to {target}, {moved}")
    world.check(world.call(source, "vm.info", {"vm": VM})["state"] == "absent", f"it has left {source}")
    world.call(source, "device.release", {"vm": VM, "op": "4/release/v1/1"})
    world.step("first host's device released")
    begun = time.monotonic()
    world.call(target, "device.attach", {"vm": VM, "op": "5/attach/v1/1"}, 120)
    world.step("device of the other host attached", target)
    ready = world.guest(target, VM, "device.ready", {"slots": ["hca0"]}, 180)["slots"][0]
    world.step("link: the guest has the device", ready)
    traffic(world, boot_id, host_mac(target))
    world.step("traffic with the peer outside")
    world.check(world.guest(target, VM, "guest.ping")["boot_id"] == boot_id, "same boot id")
    world.check(world.call(target, "vm.info", {"vm": VM})["models"] == known, "what the guest has met has moved with it")
    world.check({h[1] for h in world.peer.since(begun)} == {boot_id}, "the peer has heard of no other boot")


def main_path(world):
    source, target = "vh1", "vh2"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        world.aside = pool.submit(failures.run, world)
        boot_id = boot(world, source)
        world.aside.result()
    world.step("failures on the second host, as they should be")
    world.aside_ended()
    refused_migration(world, boot_id, source, target)
    failures.other_model(world, VM, source)
    world.step("devices of another model were refused, on both hosts")
    detach(world, source)
    move(world, boot_id, source, target)
    world.call(target, "vm.stop", {"vm": VM, "mode": "destroy", "op": "6/stop/v1/1"})
    world.step("stopped")
