"""Prints, as JSON, the content of a config drive as cloud-init's own data source reads it.

    cloud_init.py IMAGE DIRECTORY MAC

cloud-init's search for devices asks blkid about the image, as it would about a disk. Instead of a
mount, mtools or isoinfo unpack the image: not every kernel that runs the tests has these file
systems.
"""

import json
import pathlib
import shutil
import subprocess
import sys

from cloudinit import helpers, sources, util
from cloudinit.sources import DataSourceConfigDrive, DataSourceNoCloud

image, directory, mac = sys.argv[1:]
mounted = pathlib.Path(directory, "mounted")


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


tags = run("blkid", "-p", "-o", "export", image).decode().splitlines()


def find_devs_with(criteria=None, **_):
    return [image] if criteria in tags else []


def mount_cb(device, callback, data=None, **_):
    shutil.rmtree(mounted, ignore_errors=True)
    mounted.mkdir()
    if "TYPE=vfat" in tags:
        run("mcopy", "-s", "-n", "-i", device, "::*", str(mounted))
    else:
        for path in run("isoinfo", "-J", "-f", "-i", device).decode().splitlines():
            target = mounted / path.lstrip("/").removesuffix(";1")
            if path.endswith(";1"):
                target.write_bytes(run("isoinfo", "-J", "-x", path, "-i", device))
            else:
                target.mkdir()
    return callback(str(mounted)) if data is None else callback(str(mounted), data)


def decoded(data):
    """Data as text; several parts stay a list."""
    return data if isinstance(data, list) else util.decode_binary(data)


def merged(message):
    """The cloud-config parts of processed data as one."""
    config = {}
    for part in message.walk():
        if part.get_content_type() == "text/cloud-config":
            config.update(util.load_yaml(part.get_payload(decode=True)) or {})
    return config


util.find_devs_with = find_devs_with
util.mount_cb = mount_cb
paths = helpers.Paths({"cloud_dir": directory + "/cloud", "run_dir": directory + "/run"})
found = {}
for kind in (DataSourceConfigDrive.DataSourceConfigDrive, DataSourceNoCloud.DataSourceNoCloud):
    source = kind({}, None, paths)
    source.known_macs = {mac: "eth0"}
    if source._get_data():
        hostname = source.get_hostname()
        found = {
            "source": source.dsname,
            "instance": source.get_instance_id(),
            "hostname": getattr(hostname, "hostname", hostname),
            "user_data": util.decode_binary(
                util.decomp_gzip(source.get_userdata_raw() or "", quiet=True, decode=False)),
            "vendor_data": decoded(source.get_vendordata_raw() or ""),
            "vendor_parts": merged(source.get_vendordata()),
            "keys": source.get_public_ssh_keys(),
            "network": source.network_config,
            "meta": source.metadata.get("meta", source.metadata),
        }
        break
print(json.dumps(found))
