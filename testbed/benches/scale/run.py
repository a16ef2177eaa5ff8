"""Benchmarks of scale: thousands of specs at rest, and hundreds of installations.

`testbed/bench scale` runs `run.py BASE [CASE…]`. Each case prints one line, `bench scale CASE
key=value…`: seconds, processor seconds of the agent, percent of a core, MiB. No result fails the
run.
"""

import asyncio
import os
import re
import shutil
import socket
import sys
import time
from datetime import datetime

from fleet import Fleet, address, mac, name
from site_of_specs import Agent, Site

MANY = 10_000
IDLE_S = 60
SILENT_PORT = 624
SILENT_S = int(os.environ.get("SILENT_S", "1200"))
SILENT_IDLE_S = 10 * IDLE_S


def say(case, **numbers):
    print(f"bench scale {case}",
          *(f"{key}={value:.4g}" for key, value in numbers.items()),
          flush=True)


def crowd(site, count, bmc=lambda n: None, more=""):
    for n in range(count):
        site.write(f"n{n:05d}", f"52:54:02:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}", bmc(n),
                   more)


def first_start(site, count):
    agent = Agent(site)
    ready = agent.wait_ready()
    while site.statuses() < count:
        time.sleep(0.02)
    return agent, {"ready_s": ready, "statuses_s": agent.elapsed(), "cpu_s": agent.cpu()}


def start(base):
    """10,000 machines without a BMC: first start, idle agent, one changed spec, second start."""
    site = Site(base)
    crowd(site, MANY)
    agent, numbers = first_start(site, MANY)
    agent.settle()
    say("start", **numbers, settled_cpu_s=agent.cpu(), rss_mib=agent.memory())
    say("idle", cpu_percent=agent.idle(IDLE_S), rss_mib=agent.memory())
    before, cpu, changed = site.shown("n05000", "spec_digest"), agent.cpu(), time.monotonic()
    site.write("n05000", "52:54:02:00:13:88", None, 'redeploy = "changed"')
    while site.shown("n05000", "spec_digest") == before:
        time.sleep(0.005)
    took = time.monotonic() - changed
    agent.settle()
    say("change", status_s=took, cpu_s=agent.cpu() - cpu, stop_s=agent.stop())
    agent = Agent(site)
    numbers = {"ready_s": agent.wait_ready(), "cpu_s": agent.cpu()}
    agent.settle()
    say("restart",
        **numbers,
        settled_cpu_s=agent.cpu(),
        rss_mib=agent.memory(),
        stop_s=agent.stop())
    agent = Agent(site)
    agent.wait_ready()
    say("stop_at_once", stop_s=agent.stop())


def silent(base):
    """10,000 machines with silent BMCs.

    The measurement begins SILENT_S seconds after the first start, because the agent polls more
    often until then.
    """
    site = Site(base)
    crowd(site, MANY, lambda n: f"{address(3, n)}:{SILENT_PORT}", 'state = "unmanaged"')
    agent, numbers = first_start(site, MANY)
    time.sleep(SILENT_S)
    wakes, cpu_percent = agent.wakes(), agent.idle(SILENT_IDLE_S)
    say("silent",
        **numbers,
        idle_cpu_percent=cpu_percent,
        wakes_per_s=(agent.wakes() - wakes) / SILENT_IDLE_S,
        rss_mib=agent.memory(),
        rss_max_mib=agent.memory("VmHWM"))
    agent.stop()


def growth(base):
    """Processor time of a first start with 1,000 and with 8,000 machines."""
    cpu = []
    for count in (1000, 8000):
        site = Site(base)
        crowd(site, count)
        agent, _ = first_start(site, count)
        agent.settle()
        cpu.append(agent.cpu())
        agent.stop()
    say("growth", cpu_1000_s=cpu[0], cpu_8000_s=cpu[1], ratio=cpu[1] / cpu[0])


async def beside(base):
    """Time until the last of 20 machines is on, without and with 1,500 nodes with silent BMCs."""
    numbers = {}
    for dead in (0, 1500):
        site = Site(base)
        crowd(site, dead, lambda n: f"{address(3, n)}:{SILENT_PORT}")
        fleet = await installing(site, 20)
        agent = Agent(site)
        while len(fleet.on_at) < 20 and agent.elapsed() < 600:
            await asyncio.sleep(0.1)
        numbers[f"beside_{dead}_s"] = max(fleet.on_at.values(), default=float("inf")) - agent.began
        agent.kill()
        fleet.stop()
    say("beside", **numbers)


async def deploys(base, count=200):
    """Installs 200 machines, and kills the agent once half of them are deployed."""
    site = Site(base, 16, "limits = { imaging = 4, waiting = 50 }")
    fleet = await installing(site, count)
    agent, began, cpu, killed = Agent(site), time.monotonic(), 0, False
    deployed, memory = set(), 0
    while len(deployed) < count and time.monotonic() - began < 1200:
        await asyncio.sleep(0.5)
        memory = max(memory, agent.memory("VmHWM"))
        deployed |= {
            n
            for n in set(range(count)) - deployed if site.shown(name(n), "phase") == "deployed"
        }
        if not killed and len(deployed) >= count / 2:
            killed, cpu = True, agent.cpu()
            agent.kill()
            agent = Agent(site)
    took = time.monotonic() - began
    attempts = [int(site.shown(name(n), "attempt") or 0) for n in range(count)]
    say("deploys",
        machines=len(deployed),
        per_minute=60 * len(deployed) / took,
        cpu_s=cpu + agent.cpu(),
        rss_max_mib=memory,
        longest_wait_s=max(waited(site, n) for n in range(count)),
        most_attempts=max(attempts),
        boots=fleet.boots,
        wrong_disks=fleet.wrong_disks())
    agent.stop()
    fleet.stop()


async def installing(site, count):
    fleet = Fleet(site, count)
    fleet.start()
    for n in range(count):
        site.write(name(n), mac(n), address(2, n), f'root_device.serial = "S{n}"')
    return fleet


def waited(site, n):
    """Seconds from a node's first appearance to its permit: from `pending` to `preparing`."""
    with open(f"{site.dir}/nodes/{name(n)}.status.toml") as file:
        history = file.read().split("[[history]]")[1:]
    at = {
        phase: re.search(r'at = "([^"]+)"', entry).group(1)
        for entry in reversed(history)
        for phase in re.findall(r'(?:phase|entered) = "([^"]+)"', entry)
    }
    moment = {
        phase: datetime.fromisoformat(when.replace("Z", "+00:00"))
        for phase, when in at.items()
    }
    return (moment["preparing"] - moment["pending"]).total_seconds()


CASES = {case.__name__: case for case in (start, silent, growth, beside, deploys)}

if __name__ == "__main__":
    base, chosen = sys.argv[1], sys.argv[2:] or CASES
    # A silent BMC: the socket accepts datagrams, and nobody reads them.
    deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    deaf.bind(("0.0.0.0", SILENT_PORT))
    try:
        for case in chosen:
            done = CASES[case](base)
            if asyncio.iscoroutine(done):
                asyncio.run(done)
    finally:
        shutil.rmtree(base, ignore_errors=True)
