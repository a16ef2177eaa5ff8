"""A simulated BMC on pyghmi's server: IPMI 2.0, cipher suites 3 and 17, boot flags.

The integration tests run it as a program; the virtual rack imports it, and its machines start and
kill QEMU. It must never share a line of protocol with hostler: pyghmi has other authors.
"""

import argparse
import hashlib
import hmac
import json
import os
import select
import struct
import sys
import threading
import time
import traceback
import uuid

import pyghmi.ipmi.private.constants as constants
import pyghmi.ipmi.private.serversession as serversession
import pyghmi.ipmi.private.session as ipmisession
from pyghmi.ipmi.bmc import Bmc

# Boot device selectors (IPMI 2.0 table 28-14, parameter 5), and their names for a Machine.
BOOT_DEVICES = {1: "network", 2: "hd", 3: "safe", 5: "optical", 6: "setup", 9: "hd", 15: "floppy"}
# The lifetime of a one-shot boot device, unless parameter 3 extends it (IPMI 2.0 table 28-14).
BOOT_FLAGS_VALID_S = 60
PRIVILEGES = {"user": 2, "operator": 3, "administrator": 4}
# Characters in one console packet, and the pause between two reads of the machine's output.
CONSOLE_CHARACTERS = 200
CONSOLE_INTERVAL_S = 0.05
# The manufacturer number of Supermicro, whose BMCs boot a UEFI disk by selector 9 only: they accept
# selector 2, and do not boot from the disk.
SUPERMICRO = 10876


class Machine:
    """The machine behind a BMC: in memory here, a QEMU process in the virtual rack."""

    # Whether a serial line connects the machine with the BMC.
    has_console = False

    def __init__(self, deaf_shutdown=False, console=None):
        self._on = False
        self._deaf_shutdown = deaf_shutdown
        self.has_console = console is not None
        self._console = console
        self._printed = None

    def power_on(self, boot_device):
        """Starts the machine from `boot_device`: `network`, `hd`, …; None: its own boot order."""
        self._on = True

    def power_off(self):
        """Stops the machine at once."""
        self._on = False

    def is_on(self):
        return self._on

    def shut_down(self):
        """Presses the ACPI power button, which an operating system may ignore."""
        if not self._deaf_shutdown:
            self.power_off()

    def printed(self, count):
        """Takes up to `count` printed bytes that nobody has read yet, without waiting for any."""
        if self._printed is None:
            self._printed = open(self._console, "rb", buffering=0)
        return self._printed.read(count)

    def hang_up(self):
        """Ends the reading of `printed`: the last console client is gone."""


class SimulatedBmc(Bmc):
    """One BMC for one machine: chassis power and boot flags.

    `log(event, **fields)` is called for every command and every change.
    `slow_power_s` delays the effect of a power command;
    `deaf_power` accepts power commands without effect;
    `privilege_check` is the step that refuses a user who asks for more than `privilege`:
    `handshake`, `session` or `command`;
    `refuse` lists [first bytes of network function, command and data; completion code; times];
    `flags_valid_s` is the lifetime of a one-shot boot device;
    `forgetful` drops any boot device whenever the machine is switched off;
    `least_pause_s`: a session opened sooner than this after the last datagram hangs the whole BMC;
    `guid` is the answer to Get System GUID; without it, the BMC refuses that command;
    `refuse_after_power` is like `refuse`, and counts anew from each power command;
    `user_gone_s`: after each power command, the BMC knows no user for so long;
    `late_flags_s` is the delay after which the BMC shows the boot flags that were set;
    `session_0_status` refuses every RAKP message 1 with this status, in the name of session 0;
    `kg` is the BMC key of two-key login, in bytes.
    """

    def __init__(self, machine, address, port=623, users=None, suites=(3, 17),
                 privilege="administrator", privilege_check="session", slow_power_s=0,
                 deaf_power=False, refuse=(), log=None, downgrade=False, manufacturer=0,
                 flags_valid_s=BOOT_FLAGS_VALID_S, forgetful=False, least_pause_s=0, guid=None,
                 refuse_after_power=(), user_gone_s=0, late_flags_s=0, session_0_status=None,
                 kg=None):
        # No reader thread of pyghmi's: before this thread sends, it makes the socket blocking. A
        # reader thread that is about to read then blocks every BMC of the process.
        ipmisession.iothread, ipmisession.iothreadready = threading.current_thread(), True
        ipmisession.Session.wait_for_rsp = staticmethod(wait_for_rsp)
        serversession.ServerSession = SuiteSession
        self.machine = machine
        self.suites = suites
        self.downgrade = downgrade
        self.max_privilege = PRIVILEGES[privilege]
        self.privilege_check = privilege_check
        self.slow_power_s = slow_power_s
        self.deaf_power = deaf_power
        self.refuse = list(refuse)
        self.flags_valid_s = flags_valid_s
        self.forgetful = forgetful
        self.least_pause_s = least_pause_s
        self.heard_at = -least_pause_s
        self.guid = guid
        self.refuse_after_power = refuse_after_power
        self.user_gone_s = user_gone_s
        self.user_back_at = 0
        self.late_flags_s = late_flags_s
        self.shown_flags = [(0, bytearray(5))]
        self.session_0_status = session_0_status
        self.bmc_key = kg
        self.log = log or (lambda event, **fields: None)
        self.boot_flags = bytearray(5)
        self.boot_flags_set_at = 0.0
        self.keep_boot_flags = False
        self.lock = threading.RLock()
        super().__init__(users or {}, port=port, address=address)
        self.mfgid = manufacturer

    def get_system_guid(self):
        if self.guid is None:
            raise NotImplementedError
        return uuid.UUID(bytes_le=self.guid)  # pyghmi sends the fields little-endian

    # Power

    def get_power_state(self):
        return 1 if self.machine.is_on() else 0

    def power_on(self):
        return self._later(self._start)

    def power_off(self):
        return self._later(self._stop)

    def power_cycle(self):
        if not self.machine.is_on():
            return 0xD5  # not in this state
        return self._later(self._restart)

    def power_reset(self):
        return self.power_cycle()

    def power_shutdown(self):
        return self._later(self._shut_down)

    def _later(self, change):
        self.refuse = [list(each) for each in self.refuse_after_power] or self.refuse
        self.user_back_at = time.monotonic() + self.user_gone_s
        if self.deaf_power:
            return 0
        if self.slow_power_s:
            timer = threading.Timer(self.slow_power_s, change)
            timer.daemon = True
            timer.start()
        else:
            change()
        return 0

    def _start(self):
        with self.lock:
            if not self.machine.is_on():
                device, efi = self._take_boot_device()
                self.machine.power_on(device)
                self.log("power", on=True, boot=device, efi=efi)

    def _stop(self):
        with self.lock:
            if self.machine.is_on():
                self.machine.power_off()
                self.log("power", on=False)
                self._went_off()

    def _restart(self):
        with self.lock:
            self._stop()
            self._start()

    def _shut_down(self):
        with self.lock:
            if self.machine.is_on():
                self.machine.shut_down()
                self.log("shutdown", on=self.machine.is_on())
                if not self.machine.is_on():
                    self._went_off()

    def _went_off(self):
        if self.forgetful:
            self.boot_flags = bytearray(5)

    # Boot flags

    def _boot_flags_valid(self):
        valid, persistent = self.boot_flags[0] & 0x80, self.boot_flags[0] & 0x40
        fresh = time.monotonic() - self.boot_flags_set_at < self.flags_valid_s
        return bool(valid and (persistent or self.keep_boot_flags or fresh))

    def _take_boot_device(self):
        """The device for the boot that begins now, and its EFI bit; clears a one-shot choice."""
        if not self._boot_flags_valid():
            return None, None
        selector = self.boot_flags[1] >> 2 & 0xF
        efi = bool(self.boot_flags[0] & 0x20)
        device = BOOT_DEVICES.get(selector)
        if self.mfgid == SUPERMICRO and efi and selector == 2:
            device = None
        if not self.boot_flags[0] & 0x40:
            self.boot_flags = bytearray(5)
        return device, efi

    def set_system_boot_options(self, request, session):
        parameter, data = request["data"][0] & 0x7F, request["data"][1:]
        if parameter == 3:
            self.keep_boot_flags = bool(data[0] & 0x08)
        elif parameter == 5:
            if len(data) != 5:
                return session.send_ipmi_response(code=0xC7)
            self.boot_flags = bytearray(data)
            self.boot_flags_set_at = time.monotonic()
            self.shown_flags.append((self.boot_flags_set_at + self.late_flags_s, bytearray(data)))
            self.log("boot", flags=self.boot_flags.hex())
        elif parameter not in (0, 4):
            return session.send_ipmi_response(code=0x80)
        return session.send_ipmi_response()

    def get_system_boot_options(self, request, session):
        if request["data"][0] != 5:
            return session.send_ipmi_response(code=0x80)
        flags = bytearray(self.boot_flags)
        if not self._boot_flags_valid():
            flags[0] &= 0x7F
        if self.late_flags_s:
            flags = [flags for at, flags in self.shown_flags if at <= time.monotonic()][-1]
        return session.send_ipmi_response(data=[1, 5, *flags])

    # Console

    def is_active(self):
        return True  # a machine that is off has a console too, and prints nothing

    def iohandler(self, said):
        """Logs keys from a console client, or that the client does not answer any more."""
        self.log("typed", said=str(said))

    def activate_payload(self, request, session):
        if not self.machine.has_console:
            return session.send_ipmi_response(code=0x81)
        super().activate_payload(request, session)
        if self.sol and self.sol.ipmi_session is session:
            self.log("console", open=True, peer=session.sockaddr[1])

    def deactivate_payload(self, request, session):
        if self.sol:
            # The deactivation flag in the last packet: pyghmi itself only stops.
            self.sol.send_payload(bytearray((0, 0, 0, 0b10000)), retry=False)
            self.hang_up()
        session.send_ipmi_response()

    def hang_up(self):
        self.sol.awaitingack = False
        self.activated, self.sol = False, None
        self.machine.hang_up()
        self.log("console", open=False)

    def handle_raw_request(self, request, session):
        if (request["netfn"], request["command"]) == (6, 0x4B):  # get payload instance info
            owner = self.sol.ipmi_session.managedsessionid if self.sol else bytes(4)
            return session.send_ipmi_response(data=[*owner, *bytes(8)])
        super().handle_raw_request(request, session)

    def pass_on_console(self):
        """Sends the machine's output, and waits for each acknowledgement.

        Meanwhile the BMC answers other requests.
        """
        sol = self.sol
        while self.sol is sol and (text := self.machine.printed(CONSOLE_CHARACTERS)):
            sol.send_data(text)
            if self.sol is sol and sol.broken:
                self.hang_up()
            elif self.sol is sol:
                self.log("printed", bytes=len(text))


class SuiteSession(serversession.ServerSession):
    """A session with the client's cipher suite; pyghmi's own always answers with suite 3."""

    # Cipher suite: its (authentication, integrity, confidentiality), hash, bytes of the ICV.
    SUITES = {3: ((1, 1, 1), hashlib.sha1, 12), 17: ((3, 4, 1), hashlib.sha256, 16)}

    def create_open_session_response(self, request):
        pause = time.monotonic() - self.bmc.heard_at
        if pause < self.bmc.least_pause_s:
            self.bmc.log("hung", pause=pause)
            time.sleep(1e6)
        tag, self.clientsessionid = request[0], request[4:8]
        # A new session replaces an earlier one of the same address and port.
        self.k1 = self.remseqnumber = None
        self.confalgo = self.integrityalgo = self.sessionid = self.sequencenumber = 0
        asked = (request[12] & 0x3F, request[20] & 0x3F, request[28] & 0x3F)
        offered = [self.SUITES[suite] for suite in self.bmc.suites]
        chosen = [suite for suite in offered if suite[0] == asked]
        if self.bmc.downgrade:
            chosen = [self.SUITES[3]]
        if not chosen:
            return bytearray([tag, 0x11, 0, 0]) + self.clientsessionid
        (auth, integrity, confidentiality), self.currhashlib, self.currhashlen = chosen[0]
        self.clientpriv = 2
        self.managedsessionid = os.urandom(4)
        return (bytearray([tag, 0, 4, 0]) + self.clientsessionid + self.managedsessionid
                + bytearray([0, 0, 0, 8, auth, 0, 0, 0,
                             1, 0, 0, 8, integrity, 0, 0, 0,
                             2, 0, 0, 8, confidentiality, 0, 0, 0]))

    def _hmac(self, key, data):
        return hmac.new(key, bytes(data), self.currhashlib).digest()

    def _role_and_name(self):
        return struct.pack("2B", self.rolem, len(self.username)) + self.username

    def _got_rakp1(self, data):
        self.Rm, self.rolem, self.username = data[8:24], data[24], bytes(data[28:])
        asked = self.rolem & 0b111
        self.maxpriv = min(
            asked, self.bmc.max_privilege) if self.bmc.privilege_check == "session" else asked
        if self.bmc.privilege_check == "handshake" and asked > self.bmc.max_privilege:
            self._send_plain("rakp2", bytearray([data[0], 0x0A, 0, 0]) + self.clientsessionid)
            return
        if self.bmc.session_0_status is not None:
            self.bmc.log("refused", status=self.bmc.session_0_status)
            self._send_plain("rakp2",
                             bytearray([data[0], self.bmc.session_0_status, 0, 0]) + bytes(36))
            return
        password = self.authdata.get(self.username.decode("utf-8", "replace"))
        if password is None or time.monotonic() < self.bmc.user_back_at:
            self._send_plain("rakp2", bytearray([data[0], 0x0D, 0, 0]) + self.clientsessionid)
            return
        self.Rc, self.uuiddata, self.kuid = os.urandom(16), self.uuid.bytes, password.encode(
            "utf-8")
        authcode = self._hmac(
            self.kuid, self.clientsessionid + self.managedsessionid + self.Rm + self.Rc +
            self.uuiddata + self._role_and_name())
        self._send_plain(
            "rakp2",
            bytearray([data[0], 0, 0, 0]) + self.clientsessionid + self.Rc + self.uuiddata +
            authcode)

    def _got_rakp3(self, data):
        if not hasattr(self, "Rc"):
            return
        expected = self._hmac(self.kuid, self.Rc + self.clientsessionid + self._role_and_name())
        if data[1] != 0 or expected != bytes(data[8:]):
            return
        self.sik = self._hmac(self.bmc.bmc_key or self.kuid,
                              self.Rm + self.Rc + self._role_and_name())
        self.k1 = self._hmac(self.sik, b"\x01" * 20)
        self.k2 = self._hmac(self.sik, b"\x02" * 20)
        self.aeskey = self.k2[0:16]
        self.localsid = struct.unpack("<I", self.managedsessionid)[0]
        self.ipmicallback = self.handle_client_request
        self.bmc.log("session",
                     open=True,
                     peer=self.sockaddr[1],
                     suite=17 if self.currhashlen == 16 else 3)
        self._send_rakp4(data[0], 0)

    def _send_rakp4(self, tagvalue, statuscode):
        check = self._hmac(self.sik,
                           self.Rm + self.managedsessionid + self.uuiddata)[:self.currhashlen]
        self._send_plain("rakp4",
                         bytearray([tagvalue, statuscode, 0, 0]) + self.clientsessionid + check)
        self.confalgo, self.integrityalgo = "aes", "by suite"
        self.sequencenumber = 1
        self.sessionid = struct.unpack("<I", bytes(self.clientsessionid))[0]

    def _send_plain(self, name, payload):
        self.send_payload(payload, constants.payload_types[name], retry=False)

    def handle_client_request(self, request):
        self.bmc.log("command", netfn=request["netfn"], command=request["command"],
                     data=bytes(request["data"]).hex(), peer=self.sockaddr[1])
        self.bmc.heard_at = time.monotonic()
        refusal = self._refusal(
            bytes([request["netfn"], request["command"]]) + bytes(request["data"]))
        if refusal:
            self.send_ipmi_response(code=refusal)
        elif (self.bmc.privilege_check == "command" and request["netfn"] == 0
              and self.maxpriv > self.bmc.max_privilege):
            self.send_ipmi_response(code=0xD4)
        else:
            super().handle_client_request(request)

    def _refusal(self, request):
        """The completion code that refuses this request, or 0."""
        for refusal in self.bmc.refuse:
            beginning, code, times = refusal
            if times and request.startswith(beginning):
                refusal[2] -= 1
                return code
        return 0

    def sessionless_data(self, data, sockaddr):
        """Ignores a packet of a closed session."""

    def close_server_session(self):
        self.bmc.log("session", open=False, peer=self.sockaddr[1])
        if self.bmc.sol and self.bmc.sol.ipmi_session is self:
            self.bmc.hang_up()
        ipmisession.Session.bmc_handlers.pop(self.sockaddr, None)


def wait_for_rsp(timeout=None, callout=True):
    """Waits for packets, for at most `timeout` seconds, and answers them.

    Replaces pyghmi's own function, which waits for the reader thread.
    """
    select.select(ipmisession.iosockets, (), (), timeout)
    ipmisession._io_graball(ipmisession.iosockets, {})
    while ipmisession.sessionqueue:
        try:
            ipmisession.sessionqueue.popleft().process_pktqueue()
        except Exception:
            traceback.print_exc()


def serve(*bmcs):
    """Serves every BMC of this process for ever, and sends the console output of `bmcs`.

    No datagram may end it.
    """
    while True:
        listened_to = [bmc for bmc in bmcs if bmc.sol]
        wait_for_rsp(CONSOLE_INTERVAL_S if listened_to else None)
        for bmc in listened_to:
            try:
                bmc.pass_on_console()
            except Exception:
                traceback.print_exc()


def json_log(path):
    """A `log` for SimulatedBmc that appends one JSON object a line."""
    file = open(path, "a", buffering=1, encoding="utf-8")

    def log(event, **fields):
        file.write(json.dumps({"time": time.monotonic(), "event": event, **fields}) + "\n")

    return log


def refusal(text):
    """Parses `000803=80*2`: a request's first bytes, the completion code, and a number of times.

    Without a number, the refusal holds for ever.
    """
    beginning, _, rest = text.partition("=")
    code, _, times = rest.partition("*")
    return [bytes.fromhex(beginning), int(code, 16), float(times or "inf")]


def parse_arguments():
    parser = argparse.ArgumentParser(description="A simulated BMC with a machine in memory.")
    option = parser.add_argument
    seconds = {"type": float, "default": 0, "metavar": "SECONDS"}
    refusals = {"type": refusal, "action": "append", "default": [],
                "metavar": "REQUEST=CODE[*TIMES]"}
    option("--listen", default="127.0.0.1", help="the one address to bind")
    option("--port", type=int, required=True)
    option("--user", default="admin")
    option("--password-file", required=True)
    option("--suite", choices=["3", "17", "both", "downgrade"], default="both",
           help="downgrade: answer every proposal with suite 3, as pyghmi itself does")
    option("--privilege", choices=PRIVILEGES, default="administrator",
           help="the most the user may ask for")
    option("--privilege-check", choices=["handshake", "session", "command"], default="session",
           help="the step that refuses a user who asks for more")
    option("--slow-power", **seconds, help="delay the effect of a power command")
    option("--deaf-power", action="store_true", help="accept power commands and do nothing")
    option("--deaf-shutdown", action="store_true",
           help="the system ignores the ACPI power button")
    option("--refuse", **refusals,
           help="answer requests whose network function, command and data begin with these bytes"
           " (hex) with this completion code")
    option("--refuse-after-power", **refusals,
           help="the same, counted anew from each power command on")
    option("--user-gone", **seconds, help="know no user for so long after each power command")
    option("--late-flags", **seconds, help="show boot flags so much later than they are set")
    option("--session-0-status", type=int, metavar="STATUS",
           help="refuse every RAKP message 1 with this status, in the name of session 0")
    option("--kg", type=os.fsencode, metavar="KEY", help="the BMC key of two-key login")
    option("--manufacturer", type=int, default=0,
           help="the maker's IANA number; 10876 is Supermicro, with its own UEFI disk")
    option("--flags-valid", **{**seconds, "default": BOOT_FLAGS_VALID_S},
           help="the lifetime of a one-shot boot device")
    option("--forgetful", action="store_true",
           help="forget the boot device whenever the machine is switched off")
    option("--least-pause", **seconds,
           help="hang for good when a session is opened sooner than this after the last command")
    option("--guid", type=bytes.fromhex, metavar="HEX",
           help="the answer to Get System GUID; without it the BMC refuses the command")
    option("--console", metavar="FILE",
           help="the machine has a serial line, and prints what is appended to this file")
    option("--on", action="store_true", help="the machine is on to begin with")
    option("--log", metavar="FILE", help="one JSON line per command received and state change")
    return parser.parse_args()


def main():
    args = parse_arguments()

    with open(args.password_file, encoding="utf-8") as file:
        password = file.read().rstrip("\n")
    machine = Machine(args.deaf_shutdown, args.console)
    if args.on:
        machine.power_on(None)
    bmc = SimulatedBmc(
        machine, args.listen, args.port, users={args.user: password},
        suites={"3": (3,), "17": (17,), "both": (3, 17), "downgrade": (3,)}[args.suite],
        downgrade=args.suite == "downgrade", privilege=args.privilege,
        privilege_check=args.privilege_check, slow_power_s=args.slow_power,
        deaf_power=args.deaf_power, refuse=args.refuse, manufacturer=args.manufacturer,
        flags_valid_s=args.flags_valid, forgetful=args.forgetful, least_pause_s=args.least_pause,
        guid=args.guid, refuse_after_power=args.refuse_after_power, user_gone_s=args.user_gone,
        late_flags_s=args.late_flags, session_0_status=args.session_0_status, kg=args.kg,
        log=json_log(args.log) if args.log else None)
    print("ready", flush=True)
    serve(bmc)


if __name__ == "__main__":
    sys.exit(main())
