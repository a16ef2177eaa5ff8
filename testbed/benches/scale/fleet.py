"""Simulated machines: BMCs by pyghmi, disks by one tgtd, and a coroutine for each deploy ramdisk.

The benchmark of scale imports this module and runs it in a network namespace. Machine N has the BMC
127.2.x.y:623 and calls from 127.1.x.y. As a program, the module serves some of the BMCs:
`fleet.py SOCKET FIRST COUNT`; each change of power is a datagram `N on|off DEVICE` to SOCKET.
"""

import asyncio
import hashlib
import json
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import time

from site_of_specs import CALLBACK, HTTP, MIB

BMCS_PER_PROCESS = 50
BOOT_S = (3, 8)
SECRET = "fresh-for-this-1"


def address(net, n):
    return f"127.{net}.{n >> 8}.{n & 255}"


def mac(n):
    return f"52:54:01:00:{n >> 8:02x}:{n & 255:02x}"


def name(n):
    return f"m{n:05d}"


def iqn(n):
    return f"iqn.2026-11.hostler:{name(n)}"


class Fleet:
    """`count` machines of a site; `on_at` holds when each first began to boot from the network."""

    def __init__(self, site, count):
        self.site, self.count = site, count
        self.on_at, self.boots, self.errors = {}, 0, 0
        self.running, self.programs = {}, []
        self.disk_bytes = len(site.image) + 8 * MIB
        self.disks = f"{site.dir}/disks"
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE

    def start(self):
        path = f"{self.site.dir}/power"
        self.power = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.power.bind(path)
        self.power.setblocking(False)
        asyncio.get_running_loop().add_reader(self.power, self.power_changed)
        for first in range(0, self.count, BMCS_PER_PROCESS):
            command = [
                sys.executable, __file__, path,
                str(first),
                str(min(BMCS_PER_PROCESS, self.count - first))
            ]
            self.programs.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        for bmcs in self.programs:
            assert bmcs.stdout.readline() == b"ready\n"
        self.start_tgtd()

    def start_tgtd(self):
        os.makedirs(self.disks)
        environment = dict(os.environ, TGT_IPC_SOCKET=f"{self.site.dir}/tgtd")
        self.programs.append(
            subprocess.Popen(["tgtd", "-f", "-C", "7", "-t", "1", "--iscsi", "portal=0.0.0.0:3260"],
                             env=environment,
                             stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL))

        def admin(*words, check=True):
            return subprocess.run(["tgtadm", "-C", "7", *words],
                                  env=environment,
                                  check=check,
                                  capture_output=True).returncode

        while admin("--mode", "sys", "--op", "show", check=False):
            time.sleep(0.05)
        admin("--mode", "account", "--op", "new", "--user", "hostler", "--password", SECRET)
        for n in range(self.count):
            disk, tid = f"{self.disks}/{n}", str(n + 1)
            with open(disk, "wb") as file:
                file.truncate(self.disk_bytes)
            admin("--mode", "target", "--op", "new", "--tid", tid, "--targetname", iqn(n))
            admin("--mode", "logicalunit", "--op", "new", "--tid", tid, "--lun", "1",
                  "--backing-store", disk)
            admin("--mode", "target", "--op", "bind", "--tid", tid, "--initiator-address", "ALL")
            admin("--mode", "account", "--op", "bind", "--tid", tid, "--user", "hostler")

    def stop(self):
        for boot in self.running.values():
            boot.cancel()
        for program in self.programs:
            program.kill()
            program.wait()

    def wrong_disks(self):
        def differs(n):
            with open(f"{self.disks}/{n}", "rb") as disk:
                return disk.read(len(self.site.image)) != self.site.image

        return sum(map(differs, range(self.count)))

    def power_changed(self):
        try:
            while True:
                n, state, device = self.power.recv(100).decode().split()
                n = int(n)
                if n in self.running:
                    self.running.pop(n).cancel()
                if (state, device) == ("on", "network"):
                    self.on_at.setdefault(n, time.monotonic())
                    self.running[n] = asyncio.create_task(self.boot(n))
        except BlockingIOError:
            pass

    async def boot(self, n):
        """Boots machine `n`, from power on to its `completed` callback."""
        self.boots += 1
        await asyncio.sleep(random.uniform(*BOOT_S))
        menu = (await self.fetch(n, f"ipxe/01-{mac(n).replace(':', '-')}.ipxe")).decode()
        if "hostler.key=" not in menu:
            return
        args = dict(word.split("=", 1) for word in menu.split() if word.startswith("hostler."))
        for line in ("kernel", "initrd"):
            await self.fetch(n, re.search(rf"^{line} .*http://[^/]+/(\S+)", menu, re.M).group(1))
        disk = {
            "name": "vda", "size": self.disk_bytes, "serial": f"S{n}", "logical_block_size": 512
        }
        await self.call(
            n, args, "POST", "lookup",
            {"macs": [mac(n)], "system_uuid": None, "disks": [disk], "memory": 1, "cpus": 1})
        await self.call(
            n, args, "POST", "pass_deploy_info", {
                "address": address(1, n), "port": 3260, "lun": 1, "iqn": iqn(n),
                "chap_username": "hostler", "chap_password": SECRET, "error": ""
            })
        while (state := (await self.call(n, args, "GET", "deploy_state"))["state"]) == "imaging":
            await asyncio.sleep(1)
        if state == "release":
            await self.call(n, args, "POST", "completed", {"error": "", "verified": False})

    async def fetch(self, n, path):
        """Fetches a boot file, and repeats the request until the whole file arrives."""
        while True:
            try:
                head, body = await self.exchange(
                    n, HTTP,
                    f"GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                is_whole = length and int(length.group(1)) == len(body)
                if is_whole and b" 200 " in head.split(b"\r\n")[0]:
                    return body
            except (OSError, ValueError, asyncio.TimeoutError):
                pass
            self.errors += 1
            await asyncio.sleep(1)

    async def call(self, n, args, method, what, body=None):
        """Makes a callback, and repeats it until the agent answers.

        The agent's TLS certificate has to be the one that the kernel command line pins.
        """
        content = b"" if body is None else json.dumps(body).encode()
        head = (f"{method} /v1/nodes/{args['hostler.node']}/vendor_passthru/{what} HTTP/1.1\r\n"
                "Host: x\r\nConnection: close\r\n"
                f"Authorization: Bearer {args['hostler.key']}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n")
        while True:
            try:
                answer, rest = await self.exchange(n, CALLBACK,
                                                   head.encode() + content, args["hostler.pin"])
                if int(answer.split()[1]) in (200, 202):
                    return json.loads(rest) if rest else None
            except (OSError, ValueError, IndexError, asyncio.TimeoutError):
                pass
            self.errors += 1
            await asyncio.sleep(1)

    async def exchange(self, n, port, request, pin=None):
        tls = {"ssl": self.tls, "server_hostname": "x"} if pin else {}
        connecting = asyncio.open_connection("127.0.0.1",
                                             port,
                                             local_addr=(address(1, n), 0),
                                             **tls)
        reader, writer = await asyncio.wait_for(connecting, 20)
        try:
            certificate = writer.get_extra_info("ssl_object").getpeercert(True) if pin else b""
            if pin and hashlib.sha256(certificate).hexdigest() != pin:
                raise OSError("another certificate")
            writer.write(request)
            await writer.drain()
            head, body = (await asyncio.wait_for(reader.read(-1), 60)).split(b"\r\n\r\n", 1)
            return head, body
        finally:
            writer.close()


def serve_bmcs(path, first, count):
    sys.path.insert(0, "testbed/bmc")
    from bmc import Machine, SimulatedBmc, serve

    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    out.connect(path)

    class ReportingMachine(Machine):
        def __init__(self, n):
            super().__init__()
            self.n = n

        def power_on(self, boot_device):
            super().power_on(boot_device)
            out.send(f"{self.n} on {boot_device}".encode())

        def power_off(self):
            super().power_off()
            out.send(f"{self.n} off -".encode())

    bmcs = [
        SimulatedBmc(ReportingMachine(n), address(2, n), 623, users={"admin": "secret"})
        for n in range(first, first + count)
    ]
    print("ready", flush=True)
    serve(*bmcs)


if __name__ == "__main__":
    serve_bmcs(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
