//! The documentation of every key of the configuration.
//!
//! The schema, the reference and `hostler help` show it. The reader is the list of keys: a test
//! compares both, so that neither has a key that the other lacks.

use crate::model::toml_reader::KeyDoc;

pub(super) const KEYS: &[KeyDoc] = &[
    KeyDoc { key: "specs", meaning: "The directories of specs and status files.", example: "" },
    KeyDoc {
        key: "specs.dir",
        meaning: "The directory of specs: one TOML file for each machine.",
        example: "\"/etc/hostler/nodes\"",
    },
    KeyDoc {
        key: "specs.status_dir",
        meaning: "The directory of status files, for a spec directory that is read-only or that \
            git-sync swaps. By default beside the specs.",
        example: "\"/var/lib/hostler/status\"",
    },
    KeyDoc {
        key: "specs.rescan",
        meaning: "The pause between two scans. Changes are seen at once; this is for file systems \
            that report none.",
        example: "",
    },
    KeyDoc { key: "state", meaning: "The agent's durable state.", example: "" },
    KeyDoc {
        key: "state.dir",
        meaning: "The state directory. It may not lie in `specs.dir`.",
        example: "\"/var/lib/hostler\"",
    },
    KeyDoc { key: "images", meaning: "The sources, cache and size limits of images.", example: "" },
    KeyDoc {
        key: "images.dir",
        meaning: "The directory that a relative `image.source` is relative to. By default `images` \
            in `state.dir`.",
        example: "\"/var/lib/hostler/images\"",
    },
    KeyDoc {
        key: "images.allowed_dirs",
        meaning: "Directories besides `images.dir` in which an absolute `image.source` may lie.",
        example: "[\"/mnt/images\"]",
    },
    KeyDoc {
        key: "images.cache_dir",
        meaning: "The cache of unpacked images. By default `cache` in `state.dir`. It may not lie \
            in `specs.dir`.",
        example: "\"/var/lib/hostler/cache\"",
    },
    KeyDoc {
        key: "images.cache_size",
        meaning: "The cache's size limit. Images used longest ago go first; those in use stay.",
        example: "\"20GiB\"",
    },
    KeyDoc {
        key: "images.published_max",
        meaning: "The largest image file that is fetched.",
        example: "\"64GiB\"",
    },
    KeyDoc {
        key: "images.raw_max",
        meaning: "The largest disk that an image is unpacked to.",
        example: "\"1TiB\"",
    },
    KeyDoc { key: "secrets", meaning: "The files with BMC passwords.", example: "" },
    KeyDoc {
        key: "secrets.dir",
        meaning: "The directory that `bmc.password_file` and `bmc.kg_file` are relative to. Keep \
            it out of git, and its mode 0700.",
        example: "\"/etc/hostler/secrets\"",
    },
    KeyDoc { key: "network", meaning: "The agent's address on the deploy network.", example: "" },
    KeyDoc {
        key: "network.advertise",
        meaning: "The address at which machines reach this agent, and of its listeners by default.",
        example: "\"192.0.2.1\"",
    },
    KeyDoc { key: "tftp", meaning: "The TFTP server of boot files.", example: "" },
    KeyDoc {
        key: "tftp.listen",
        meaning: "The address to listen on. By default port 69 of `network.advertise`.",
        example: "\"192.0.2.1:69\"",
    },
    KeyDoc {
        key: "tftp.loaders",
        meaning: "The directory with the boot loaders.",
        example: "\"/usr/share/hostler/loaders\"",
    },
    KeyDoc {
        key: "tftp.block_max",
        meaning: "The largest block sent, 512 to 8192 bytes. Where firewalls or tunnels lose \
            fragments, take the narrowest link's MTU less 32.",
        example: "\"1388B\"",
    },
    KeyDoc { key: "http", meaning: "The HTTP server of boot files.", example: "" },
    KeyDoc {
        key: "http.listen",
        meaning: "The address to listen on. By default port 8069 of `network.advertise`.",
        example: "\"192.0.2.1:8069\"",
    },
    KeyDoc { key: "callback", meaning: "The HTTPS server that deploy ramdisks call.", example: "" },
    KeyDoc {
        key: "callback.listen",
        meaning: "The address to listen on. By default port 8443 of `network.advertise`.",
        example: "\"192.0.2.1:8443\"",
    },
    KeyDoc { key: "ramdisk", meaning: "hostler's deploy kernel and ramdisk.", example: "" },
    KeyDoc {
        key: "ramdisk.kernel",
        meaning: "The deploy kernel.",
        example: "\"/usr/share/hostler/vmlinuz\"",
    },
    KeyDoc {
        key: "ramdisk.initramfs",
        meaning: "The deploy ramdisk.",
        example: "\"/usr/share/hostler/initramfs\"",
    },
    KeyDoc {
        key: "ramdisk.aarch64",
        meaning: "The same for aarch64 machines; without it none of them is installed.",
        example: "",
    },
    KeyDoc {
        key: "ramdisk.aarch64.kernel",
        meaning: "The deploy kernel for aarch64.",
        example: "\"/usr/share/hostler/aarch64/vmlinuz\"",
    },
    KeyDoc {
        key: "ramdisk.aarch64.initramfs",
        meaning: "The deploy ramdisk for aarch64.",
        example: "\"/usr/share/hostler/aarch64/initramfs\"",
    },
    KeyDoc {
        key: "ironic",
        meaning: "The deploy ramdisk of OpenStack Ironic's first years, for specs with \
            `boot.ramdisk = \"ironic\"`. Unless this table is there, nothing listens for it: its \
            calls come in plain HTTP.",
        example: "",
    },
    KeyDoc {
        key: "ironic.listen",
        meaning: "The address to listen on. By default port 6385 of `network.advertise`.",
        example: "\"192.0.2.1:6385\"",
    },
    KeyDoc {
        key: "ironic.kernel",
        meaning: "The kernel of Ironic's ramdisk.",
        example: "\"/usr/share/hostler/ironic/vmlinuz\"",
    },
    KeyDoc {
        key: "ironic.initramfs",
        meaning: "Ironic's ramdisk.",
        example: "\"/usr/share/hostler/ironic/initramfs\"",
    },
    KeyDoc { key: "admin", meaning: "The admin socket.", example: "" },
    KeyDoc {
        key: "admin.socket",
        meaning: "The Unix socket on which operators give orders.",
        example: "\"/run/hostler/admin.sock\"",
    },
    KeyDoc {
        key: "limits",
        meaning: "How much work may run at once; more of it waits.",
        example: "",
    },
    KeyDoc { key: "limits.imaging", meaning: "The most disks written at once.", example: "4" },
    KeyDoc {
        key: "limits.waiting",
        meaning: "The most machines brought up for imaging at once.",
        example: "50",
    },
    KeyDoc {
        key: "limits.imaging_rate_min",
        meaning: "Bytes a second, averaged over a minute, that a disk must take or give; a slower \
            one gives its place up. `\"0\"` takes any.",
        example: "\"1MiB\"",
    },
    KeyDoc {
        key: "limits.bmc_spacing",
        meaning: "The least pause between two calls to one BMC.",
        example: "",
    },
    KeyDoc { key: "safety", meaning: "The breaker and power enforcement.", example: "" },
    KeyDoc {
        key: "safety.breaker",
        meaning: "Reinstalling more than a quarter of the installed machines within ten minutes \
            waits for `hostler approve --all`, which WIPES them.",
        example: "",
    },
    KeyDoc {
        key: "safety.enforce_power",
        meaning: "Bring a machine that somebody switched on or off back to what its spec says, at \
            most once in 15 minutes.",
        example: "",
    },
    KeyDoc {
        key: "defaults",
        meaning: "Any key of a spec: it is under every spec, and under the directory's own \
            `_defaults.toml`.",
        example: "",
    },
];
