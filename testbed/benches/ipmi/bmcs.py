"""Many simulated BMCs in one process: `bmcs.py USER PASSWORD PORT…`.

Every machine is off, and nothing is logged.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bmc"))

from bmc import Machine, SimulatedBmc, serve  # noqa: E402

user, password, *ports = sys.argv[1:]
bmcs = [SimulatedBmc(Machine(), "127.0.0.1", int(port), users={user: password}) for port in ports]
print("ready", flush=True)
serve()
