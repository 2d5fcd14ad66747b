"""What can go wrong with a device: each failure names it, says what to do, and leaves nothing half-done. On the second host, while the
guest on the first one boots; the VMs here are firmware without a disk, so that nothing in them ever answers."""
from world import NIC, NO_IOMMU, SHARED, SIBLING, Refused

HOST = "vh2"


def firmware_only(name, ports, devices="", reset_after_s=0):
    """A VM that stays in its firmware, with so many free PCIe ports. It resets itself again and again where that is asked for."""
    bios = f"<bios rebootTimeout='{1000 * reset_after_s}'/>" if reset_after_s else ""
    root_ports = "<controller type='pci' model='pcie-root-port'/>" * ports
    return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
      <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>{bios}</os><features><acpi/></features>
      <cpu mode='custom' match='exact' check='none'><model>qemu64</model></cpu>
      <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>
      <controller type='pci' model='pcie-root'/>{root_ports}<memballoon model='none'/>{devices}
      </devices></domain>"""


FOREIGN = f"""<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x{NIC[5:7]}' slot='0x00'
  function='0x0'/></source></hostdev>"""


def reserve(world, vm, gres, slot, expect=None, words=()):
    params = {"vm": vm, "slots": [{"slot": slot, "gres": gres}]}
    if expect:
        return world.refused(expect, words, HOST, "device.reserve", params)
    return world.call(HOST, "device.reserve", params)


def driver_is(world, name, driver):
    world.until(20, f"{name} of {HOST} back with {driver}", lambda: world.device(HOST, name)["driver"] == driver)
    world.say(f"  ok: {name} of {HOST} has its host driver {driver}")


def inspection(world):
    """What host.info says of the devices when nothing has happened yet."""
    hca, shared, nvme, absent = (world.device(HOST, name) for name in ("hca0", "shared0", "nvme0", "absent0"))
    world.check(hca["pci"] == NIC and hca["model"] == "8086:10d3" and hca["driver"] == "e1000e" and hca["iommu_group"] >= 0
                and "problem" not in hca and hca["ports"][0]["port"].startswith("eth"), f"hca0: {hca}")
    world.check(nvme["pf"] == "0000:03:00.0" and nvme["vf"] == 0 and "problem" not in nvme, f"nvme0: {nvme}")
    world.check(shared["pci"] == SHARED and SIBLING in shared["problem"], f"shared0: {shared['problem']}")
    world.check("0000:77:00.0" in absent["problem"], f"absent0: {absent['problem']}")
    return nvme["driver"]


def no_iommu(world):
    """noded knows it before libvirt is asked; and what libvirt itself says of a domain of somebody else's."""
    problem = world.device(NO_IOMMU, "hca0")["problem"]
    world.check(NIC in problem and "IOMMU" in problem and "intel_iommu=on" in problem, f"hca0 of {NO_IOMMU}: {problem}")
    world.refused("PRECONDITION", [f"hca0 of {NO_IOMMU}", "without an IOMMU"], NO_IOMMU, "device.reserve",
                  {"vm": "w1", "slots": [{"slot": "h", "gres": "hca"}]})
    world.refused("PRECONDITION", ["w2 on vh3", "passthrough", "intel_iommu=on"], NO_IOMMU, "vm.start",
                  {"vm": "w2", "xml": firmware_only("w2", 1, FOREIGN)})
    nothing_left(world, NO_IOMMU, "w2")
    world.power_off(NO_IOMMU)


def nothing_left(world, host, vm):
    world.check(world.call(host, "vm.info", {"vm": vm})["state"] == "absent", f"nothing is left of {vm} on {host}")


def unplugs(world, vm):
    info = world.call(HOST, "vm.info", {"vm": vm})
    return info["unplugs_pending"], [d["slot"] for d in info["devices"] if d["attached"]]


def given_up_too_late(world, nvme_driver):
    """A VM that is reset carries out the unplug that it had not answered, long after the caller was told so: it gets the device back."""
    world.call(HOST, "vm.start", {"vm": "w3", "xml": firmware_only("w3", 1, reset_after_s=30)}, 120)
    reserve(world, "w3", "nvme", "n")
    for _ in range(3):  # the reset may come in this very second
        world.call(HOST, "device.attach", {"vm": "w3"}, 60)
        try:
            world.call(HOST, "device.detach", {"vm": "w3"}, 4)
        except Refused as e:
            world.say(f"  ok: {HOST} device.detach: {e}")
            break
    world.check(unplugs(world, "w3") == (["n"], ["n"]), "an unplug that was not answered is on record")
    world.until(120, "the device being given up and given back", lambda: unplugs(world, "w3") == ([], ["n"]))
    world.say("  ok: what was given up too late has been given back")
    world.call(HOST, "vm.stop", {"vm": "w3", "mode": "destroy"})
    world.call(HOST, "device.release", {"vm": "w3"})
    driver_is(world, "nvme0", nvme_driver)


def interface(world, nvme_driver):
    """The XML that an Ethernet VF is given, as libvirt takes it: as far as the physical function's interface, through which it would set
    MAC and VLAN. QEMU 7.2 has no NIC with virtual functions."""
    function = "<address type='pci' domain='0x0000' bus='0x{}' slot='0x00' function='0x{}'/>".format
    for code, where, words in (("REFUSED", function("03", 1), "network device name"),
                               ("INVALID_ARGUMENT", function("01", 0), "Virtual Functions only")):
        xml = f"<interface type='hostdev' managed='yes'><mac address='52:54:00:98:01:01'/><source>{where}</source><vlan><tag id='5'/></vlan></interface>"
        world.refused(code, ["w4 on vh2", words], HOST, "vm.start", {"vm": "w4", "xml": firmware_only("w4", 1, xml)})
    nothing_left(world, HOST, "w4")
    driver_is(world, "nvme0", nvme_driver)
    driver_is(world, "hca0", "e1000e")


def run(world):
    no_iommu(world)
    nvme_driver = inspection(world)
    reserve(world, "w1", "absent", "a", "NOT_FOUND", ["absent0 of vh2", "0000:77:00.0", "lspci"])
    reserve(world, "w1", "shared", "s", "PRECONDITION", ["shared0 of vh2", SHARED, SIBLING, "e1000e", "vfio-pci"])

    # Another VM, not one of ours, has the NIC.
    world.call(HOST, "vm.start", {"vm": "w2", "xml": firmware_only("w2", 1, FOREIGN)}, 120)
    world.call(HOST, "vm.start", {"vm": "w1", "xml": firmware_only("w1", 1)}, 120)
    reserve(world, "w1", "hca", "h")
    world.refused("PRECONDITION", ["hca0 of vh2", NIC, "in use", "domain w2"], HOST, "device.attach", {"vm": "w1"}, 60)
    world.call(HOST, "vm.stop", {"vm": "w2", "mode": "destroy"})
    driver_is(world, "hca0", "e1000e")
    world.call(HOST, "vm.stop", {"vm": "w1", "mode": "destroy"})
    world.call(HOST, "device.release", {"vm": "w1"})

    # One PCIe port, two devices: the second one does not fit, and stays the host's.
    world.call(HOST, "vm.start", {"vm": "w1", "xml": firmware_only("w1", 1)}, 120)
    reserve(world, "w1", "nvme", "n")
    world.call(HOST, "device.attach", {"vm": "w1"}, 60)
    nvme = world.device(HOST, "nvme0")
    world.check(nvme["driver"] == "vfio-pci" and nvme["state"] == "attached", "a virtual function that is no NIC is attached")
    reserve(world, "w1", "hca", "h")
    world.refused("EXHAUSTED", ["hca0 of vh2", "pcie-root-port"], HOST, "device.attach", {"vm": "w1"}, 60)
    driver_is(world, "hca0", "e1000e")

    # A guest that does not answer: suspended, and one that has no operating system.
    world.call(HOST, "vm.suspend", {"vm": "w1"})
    world.refused("PRECONDITION", ["w1", "nvme0 of vh2", "suspended", "vm.resume"], HOST, "device.detach", {"vm": "w1"})
    world.call(HOST, "vm.resume", {"vm": "w1"})
    world.refused("DEADLINE", ["w1", "nvme0 of vh2", "has not given up", "booting"], HOST, "device.detach", {"vm": "w1"}, 6)
    attached = [d["slot"] for d in world.call(HOST, "vm.info", {"vm": "w1"})["devices"] if d["attached"]]
    world.check(attached == ["n"], "the device is still the VM's")
    world.call(HOST, "vm.stop", {"vm": "w1", "mode": "destroy"})
    world.call(HOST, "device.release", {"vm": "w1"})
    given_up_too_late(world, nvme_driver)
    interface(world, nvme_driver)
    states = {d["device"]: d["state"] for d in world.call(HOST, "host.info")["devices"]}
    world.check(set(states.values()) == {"free"}, f"all devices of {HOST} are free again")


def other_model(world, vm, source):
    """The guest has known a NIC in this slot: a device of another model is not reserved for it, here before it has come, and there."""
    known = world.call(source, "vm.info", {"vm": vm})["models"]
    world.check(known == {"hca0": "8086:10d3"}, f"what the guest has met is kept with it: {known}")
    for host, models in ((HOST, {"models": known}), (source, {})):
        world.refused("PRECONDITION", [f"nvme0 of {host}", "1b36:0010", "8086:10d3", "compatible"], host, "device.reserve",
                      {"vm": vm, "slots": [{"slot": "hca0", "gres": "nvme"}], **models})
