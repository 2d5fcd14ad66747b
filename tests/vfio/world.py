"""Nested hosts, the network between them, and a peer outside. Runs as root in network, mount and PID namespaces of its own (run
makes them): whatever is started here ends with them."""
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
HOSTS = {"vh1": "10.97.0.11", "vh2": "10.97.0.12", "vh3": "10.97.0.13"}
NO_IOMMU = "vh3"  # whose administrator has forgotten it; no VM ever runs there
CONTROL = "10.97.0.1"
PEER = "10.98.0.1"
PEER_PORT = 9798
GUEST_ADDRESS = "10.98.0.50"
NODED_PORT = 6821

# What a host has besides its management NIC, by PCI address as its kernel sees it:
#   0000:01:00.0  e1000e on the fabric, in an IOMMU group of its own: what VMs get
#   0000:02:00.0  e1000e, and 0000:02:00.1 another function of the same slot without ACS: one IOMMU group
#   0000:03:00.0  NVMe controller with SR-IOV, 0000:03:00.1 its virtual function
NIC, SHARED, SIBLING, NVME = "0000:01:00.0", "0000:02:00.0", "0000:02:00.1", "0000:03:00.0"


class Refused(Exception):
    """The answer of symvirt-noded was an error."""

    def __init__(self, text):
        super().__init__(text)
        self.code, _, self.message = text.partition(": ")


class Failed(Exception):
    """The test has failed."""


def sh(*command, check=True, timeout=60):
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def host_mac(host):
    # Each host's NIC has a MAC of its own: after the move the guest has another device, and the peer can tell.
    return f"52:54:00:98:00:{list(HOSTS).index(host) + 1:02x}"


class Peer(threading.Thread):
    """The machine outside, on the fabric: sends back each datagram, and remembers who has sent it."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((PEER, PEER_PORT))
        self.lock = threading.Lock()
        self.heard = []  # (time, boot id, number, returned)

    def run(self):
        while True:
            data, sender = self.socket.recvfrom(2048)
            boot_id, number, returned = data.decode().split()
            with self.lock:
                self.heard.append((time.monotonic(), boot_id, int(number), int(returned)))
            self.socket.sendto(data, sender)

    def since(self, when):
        with self.lock:
            return [h for h in self.heard if h[0] >= when]

    @staticmethod
    def mac():
        """Who owns the guest's address now, as the peer's own kernel knows."""
        words = sh("ip", "neigh", "show", GUEST_ADDRESS, "dev", "br-fab", check=False).split()
        return words[words.index("lladdr") + 1] if "lladdr" in words else ""


class World:
    def __init__(self, work, image, build):
        self.work, self.image, self.build = work, image, build
        self.hosts = {}
        self.began = time.monotonic()
        self.steps = []  # (name, seconds): what the closing table shows
        self.say_lock = threading.Lock()
        self.peer = None
        self.aside = None  # future of what runs beside the main path
        self.clock = self.began
        self.tsc_khz = sh(f"{build}/tests/vfio/vfio_guest_init", "--tsc-khz").strip()

    # -- telling

    def say(self, text):
        with self.say_lock:
            print(f"vfio: {time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def step(self, name, told=""):
        """A step of the main path has been done: tells it, with the time since the one before."""
        now = time.monotonic()
        self.steps.append((name, now - self.clock))
        self.say(f"{name}{told and ': '}{told} (+{now - self.clock:.1f} s)")
        self.clock = now

    def aside_ended(self):
        """From here on nothing runs beside the main path."""
        self.steps.append((None, 0))
        self.clock = time.monotonic()

    def table(self):
        """What each step took. Those above the line shared the machine with the failures on the second host."""
        rows = [f"  {'-' * 60}" if name is None else f"  {name:<54}{seconds:6.1f}" for name, seconds in self.steps]
        return "\n".join([f"  {'step':<54}{'s':>6}", *rows])

    # -- making

    def start(self):
        self.networks()
        self.munge()
        self.site_disk()
        for host in HOSTS:
            self.start_host(host)
        self.peer = Peer()
        self.peer.start()

    def networks(self):
        sh("ip", "link", "set", "lo", "up")
        for bridge, address in (("br-mgt", CONTROL), ("br-fab", PEER)):
            sh("ip", "link", "add", bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0")
            sh("ip", "addr", "add", f"{address}/24", "dev", bridge)
            sh("ip", "link", "set", bridge, "up")
        for host in HOSTS:
            for net in ("mgt", "fab"):
                sh("ip", "tuntap", "add", f"{net}-{host}", "mode", "tap")
                sh("ip", "link", "set", f"{net}-{host}", "master", f"br-{net}", "up")
        with open(f"{self.work}/hosts", "w") as out:
            out.write("127.0.0.1 localhost\n")
            out.writelines(f"{address} {host}\n" for host, address in HOSTS.items())
        sh("mount", "--bind", f"{self.work}/hosts", "/etc/hosts")

    def munge(self):
        """A MUNGE of this test's own: outside and on the hosts, with a key that is made here."""
        sh("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        folder = f"{self.work}/munge"
        os.makedirs(folder)
        os.makedirs("/run/munge")
        with open(f"{folder}/munge.key", "wb") as out:
            out.write(os.urandom(128))
        os.chmod(f"{folder}/munge.key", 0o400)
        sh("chown", "-R", "munge:munge", folder, "/run/munge")
        # Not below the work folder's: munged is particular about who may write along the path.
        sh("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt")
        sh("cp", "-a", folder, "/mnt/munge")
        as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--init-groups"]
        self.spawn("munged", as_munge + [
            "/usr/sbin/munged", "--foreground", "--force", "--key-file=/mnt/munge/munge.key", "--log-file=/mnt/munge/log",
            "--pid-file=/run/munge/munged.pid", "--seed-file=/mnt/munge/seed", "--socket=/run/munge/munge.socket.2"])

    def site_disk(self):
        """What differs from run to run, on a second disk of the hosts: our programs, configuration, keys."""
        site = f"{self.work}/site"
        etc = f"{site}/etc"
        for folder in ("libvirt", "munge", "symvirt"):
            os.makedirs(f"{etc}/{folder}")
        shutil.copy(f"{self.build}/node-helper/host/symvirt-noded", site)
        shutil.copy(f"{HERE}/host-init", f"{site}/init")
        self.guest_initrd(f"{site}/guest.initrd")
        sh("cp", "-a", f"{self.work}/munge/munge.key", f"{etc}/munge/")
        with open(f"{etc}/hosts", "w") as out:
            out.write("127.0.0.1 localhost\n")
            out.writelines(f"{address} {host}\n" for host, address in HOSTS.items())
        shutil.copy(f"{HERE}/noded.toml", f"{etc}/symvirt/noded.toml")
        with open(f"{etc}/libvirt/qemu.conf", "w") as out:
            out.write('user = "root"\ngroup = "root"\nsecurity_driver = "none"\nstdio_handler = "file"\nmigration_address = "0.0.0.0"\n')
        for n, host in enumerate(HOSTS, 1):
            own = f"{site}/hosts/{host}"
            os.makedirs(f"{own}/libvirt")
            with open(f"{own}/libvirt/libvirtd.conf", "w") as out:
                out.write('listen_tls = 0\nlisten_tcp = 1\nauth_tcp = "none"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
                          f'host_uuid = "9700000{n}-0000-4000-8000-00000000000{n}"\n'
                          'log_outputs = "3:file:/var/log/libvirt/libvirtd.log"\n')
            shutil.copy(f"{own}/libvirt/libvirtd.conf", f"{own}/libvirt/virtproxyd.conf")
        size = int(sh("du", "-sm", site).split()[0]) + 16
        sh("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0", "-d", site, f"{self.work}/site.img", f"{size}M")

    def guest_initrd(self, path):
        """The nested guest: our first program, symvirt-guestd with the libraries it needs, a few modules. No disk."""
        root = f"{self.work}/guest"
        for folder in ("dev", "proc", "sys", "run", "modules", "var/lib/symvirt", "etc/symvirt"):
            os.makedirs(f"{root}/{folder}")
        shutil.copy(f"{self.build}/tests/vfio/vfio_guest_init", f"{root}/init")
        shutil.copy(f"{self.build}/node-helper/guest/symvirt-guestd", root)
        sh("strip", f"{root}/init", f"{root}/symvirt-guestd")
        for module in os.listdir(f"{self.image}/guest-modules"):
            shutil.copy(f"{self.image}/guest-modules/{module}", f"{root}/modules/")
        for line in sh("ldd", f"{root}/symvirt-guestd").splitlines():
            for word in line.split():
                if word.startswith("/"):
                    os.makedirs(os.path.dirname(root + word), exist_ok=True)
                    shutil.copy(word, root + word)  # follows links: the name that was asked for
        with open(path, "wb") as out:
            names = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names, stdout=out, check=True)

    def start_host(self, host):
        n = list(HOSTS).index(host) + 1
        tap = "script=no,downscript=no"
        iommu, memory, tb = ["-device", "intel-iommu,caching-mode=on,intremap=on"], "2048", 512
        if host == NO_IOMMU:
            iommu, memory, tb = [], "512", 64
        self.hosts[host] = self.spawn(f"qemu-{host}", [
            "qemu-system-x86_64", "-name", host, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35,smm=off,vmport=off", "-accel", f"tcg,thread=multi,tb-size={tb}", "-cpu", "max", "-smp", "1", "-m", memory, *iommu,
            "-kernel", f"{self.image}/vmlinux", "-initrd", f"{self.image}/initrd.img",
            "-append", "console=ttyS0 quiet loglevel=4 intel_iommu=on iommu=pt mitigations=off nokaslr no_timer_check tsc=reliable "
            f"tsc_early_khz={self.tsc_khz} random.trust_cpu=on nowatchdog cryptomgr.notests panic=-1 symvirt.host={host} symvirt.mgmt={HOSTS[host]}/24",
            "-serial", f"file:{self.work}/{host}.console",
            "-monitor", f"unix:{self.work}/{host}.monitor,server=on,wait=off",
            "-drive", f"if=none,id=root,file={self.image}/host.qcow2,format=qcow2,snapshot=on",
            "-device", "virtio-blk-pci,drive=root,addr=3",
            "-drive", f"if=none,id=site,file={self.work}/site.img,format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=site,addr=4",
            "-netdev", f"tap,id=mgt,ifname=mgt-{host},{tap}",
            "-device", f"virtio-net-pci,netdev=mgt,mac=52:54:00:97:00:{n:02x},romfile=,addr=5",
            "-device", "pcie-root-port,id=rp1,chassis=1,slot=1,addr=8",
            "-netdev", f"tap,id=fab,ifname=fab-{host},{tap}",
            "-device", f"e1000e,bus=rp1,netdev=fab,mac={host_mac(host)},romfile=",
            "-device", "pcie-root-port,id=rp2,chassis=2,slot=2,addr=9",
            "-device", f"e1000e,bus=rp2,addr=0.0,multifunction=on,mac=52:54:00:96:{n:02x}:01,romfile=",
            "-device", f"e1000e,bus=rp2,addr=0.1,mac=52:54:00:96:{n:02x}:02,romfile=",
            "-device", "pcie-root-port,id=rp3,chassis=3,slot=3,addr=10",
            "-device", f"nvme-subsys,id=subsys,nqn=symvirt-{host}",
            "-device", f"nvme,bus=rp3,serial={host},subsys=subsys,sriov_max_vfs=1,sriov_vq_flexible=2,sriov_vi_flexible=1,"
            "max_ioqpairs=4,msix_qsize=5"])

    def power_off(self, host):
        process = self.hosts.pop(host)
        process.kill()
        process.wait()

    def evidence(self, host):
        """What a host that says nothing any more is at: where its processor is, what interrupts it has had, twice within a second."""
        text = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
            monitor.settimeout(10)
            monitor.connect(f"{self.work}/{host}.monitor")
            for command in 2 * ["info registers", "info irq", "info pic", "info lapic", "info network"]:
                monitor.sendall(f"{command}\n".encode())
                said = b""
                while not said.endswith(b"(qemu) ") or command.encode() not in said:
                    said += monitor.recv(65536)
                text.append(said.decode(errors="replace"))
                time.sleep(0.2)
        return "\n".join(text)

    def spawn(self, name, command):
        with open(f"{self.work}/{name}.out", "wb") as out:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)

    # -- asking

    def call(self, host, method, params=None, seconds=60):
        for name, process in list(self.hosts.items()):
            if process.poll() is not None:
                with open(f"{self.work}/qemu-{name}.out", encoding="utf-8", errors="replace") as out:
                    raise Failed(f"host {name} has ended: {out.read().strip()}")
        params = {"gen": 1, **(params or {})}  # no symvirtd has ever been here
        done = subprocess.run([f"{self.build}/node-helper/protocol/rpc_call", host, str(NODED_PORT), method, json.dumps(params),
                               str(seconds)], capture_output=True, text=True, timeout=seconds + 20, check=False)
        if done.returncode != 0:
            raise Refused(done.stderr.strip().splitlines()[-1])
        return json.loads(done.stdout)

    def guest(self, host, vm, method, params=None, seconds=60):
        return self.call(host, "guest.call", {"vm": vm, "method": method, "params": params or {}}, seconds)

    def device(self, host, name):
        for device in self.call(host, "host.info")["devices"]:
            if device["device"] == name:
                return device
        raise Failed(f"{host}: host.info does not list {name}")

    def until(self, seconds, what, condition, every=0.5):
        """The first true value of condition(); the error of a call counts as not yet."""
        end = time.monotonic() + seconds
        last = ""
        while time.monotonic() < end:
            if self.aside and self.aside.done():
                self.aside.result()  # raises what it failed with
            try:
                value = condition()
                if value:
                    return value
            except Refused as e:
                last = f" (last answer: {e})"
            time.sleep(every)
        raise Failed(f"not within {seconds} s: {what}{last}")

    def check(self, truth, what):
        if not truth:
            raise Failed(what)
        self.say(f"  ok: {what}")

    def refused(self, code, words, host, method, params, seconds=60):
        """A call must fail with this code, and its message must hold all of the words."""
        try:
            answer = self.call(host, method, params, seconds)
        except Refused as e:
            missing = [w for w in words if w not in e.message]
            if e.code != code or missing:
                raise Failed(f"{host} {method}: {code} with {words} expected, {e.code}: {e.message}") from e
            self.say(f"  ok: {host} {method}: {e}")
            return e
        raise Failed(f"{host} {method}: must be refused with {code}, is answered: {answer}")


