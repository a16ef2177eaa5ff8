"""A site of many specs, and the agent that runs it, with its processor time and memory.

The benchmark of scale imports this module. It reads /proc for the agent's process, and never asks
the agent itself.
"""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import time

HOSTLER = os.environ.get("HOSTLER", "target/x86_64-unknown-linux-gnu/release/hostler")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
TFTP, HTTP, CALLBACK = 24000, 24001, 24002
MIB = 1 << 20


class Site:
    """Directories under `base`, an image of random bytes, and the agent's configuration."""

    def __init__(self, base, image_mib=1, limits=""):
        self.dir = base
        shutil.rmtree(base, ignore_errors=True)
        for part in ["nodes", "images", "secrets", "loaders"]:
            os.makedirs(f"{base}/{part}")
        # The boot signature: hostler refuses an image without one as no disk.
        self.image = (os.urandom(510) + b"\x55\xaa" + os.urandom(MIB - 512)) * image_mib
        self.checksum = "sha256:" + hashlib.sha256(self.image).hexdigest()
        for name, content in [("images/disk.raw", self.image), ("secrets/all.bmc", b"secret\n"),
                              ("vmlinuz", b"k" * 70_000), ("initramfs", b"i" * 90_000)]:
            with open(f"{base}/{name}", "wb") as file:
                file.write(content)
        with open(f"{base}/hostler.toml", "w") as file:
            file.write(f"""
specs.dir = "{base}/nodes"
state.dir = "{base}/state"
images = {{ dir = "{base}/images", cache_dir = "{base}/cache" }}
secrets.dir = "{base}/secrets"
network.advertise = "127.0.0.1"
tftp = {{ listen = "127.0.0.1:{TFTP}", loaders = "{base}/loaders" }}
http.listen = "127.0.0.1:{HTTP}"
callback.listen = "127.0.0.1:{CALLBACK}"
admin.socket = "{base}/admin.sock"
ramdisk = {{ kernel = "{base}/vmlinuz", initramfs = "{base}/initramfs" }}
{limits}
""")

    def write(self, name, mac, bmc, more=""):
        """Writes a spec; `bmc` is the BMC's address, or None for a machine without a BMC."""
        user = 'username = "admin"\npassword_file = "all.bmc"'
        bmc = 'driver = "none"' if bmc is None else f'address = "{bmc}"\n{user}'
        text = f"""{more}
boot.mac = "{mac}"
image = {{ source = "disk.raw", checksum = "{self.checksum}" }}
[bmc]
{bmc}
"""
        with open(f"{self.dir}/.new", "w") as file:
            file.write(text)
        os.rename(f"{self.dir}/.new", f"{self.dir}/nodes/{name}.toml")

    def shown(self, name, key):
        """The value of a key of a status file; empty if the file or the key is missing."""
        try:
            with open(f"{self.dir}/nodes/{name}.status.toml") as file:
                found = re.search(rf'^{key} = "?([^"\n]*)', file.read(), re.M)
                return found.group(1) if found else ""
        except FileNotFoundError:
            return ""

    def statuses(self):
        return sum(
            entry.name.endswith(".status.toml") and entry.name[0] not in "._"
            for entry in os.scandir(f"{self.dir}/nodes"))


class Agent:
    """The agent as a process, started as a service manager does."""

    def __init__(self, site):
        self.ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = f"{site.dir}/notify"
        if os.path.exists(path):
            os.unlink(path)
        self.ready.bind(path)
        environment = dict(os.environ, NOTIFY_SOCKET=path, HOSTLER_LOG="warn")
        self.began = time.monotonic()
        with open(f"{site.dir}/agent.log", "a") as log:
            self.process = subprocess.Popen(
                [HOSTLER, "run", "--config", f"{site.dir}/hostler.toml"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment)

    def wait_ready(self):
        self.ready.settimeout(120)
        while b"READY=1" not in self.ready.recv(4096):
            pass
        return self.elapsed()

    def elapsed(self):
        return time.monotonic() - self.began

    def cpu(self):
        """Processor seconds, of the user and of the system."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def memory(self, key="VmRSS"):
        """Memory in MiB, by a key of /proc/PID/status."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(rf"{key}:\s+(\d+)", file.read()).group(1)) / 1024

    def wakes(self):
        """The number of times that a thread waited for something: voluntary context switches."""
        total = 0
        for thread in os.scandir(f"/proc/{self.process.pid}/task"):
            with open(f"{thread.path}/status") as file:
                found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.M)
                total += int(found.group(1))
        return total

    def settle(self, limit=120):
        """Waits until the agent has been idle for three seconds."""
        quiet, last, end = 0, self.cpu(), time.monotonic() + limit
        while quiet < 3 and time.monotonic() < end:
            time.sleep(1)
            now = self.cpu()
            quiet, last = (quiet + 1 if now - last < 0.03 else 0), now

    def idle(self, seconds):
        """The agent's share of one core over so many seconds, in percent."""
        before = self.cpu()
        time.sleep(seconds)
        return 100 * (self.cpu() - before) / seconds

    def stop(self):
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - began

    def kill(self):
        self.process.kill()
        self.process.wait()
