//! The documentation of every key of a spec.
//!
//! The schema, the reference and `hostler help` show it. The reader in `schema` is the list of
//! keys: a test compares both, so that neither has a key that the other lacks.

use crate::model::toml_reader::KeyDoc;

pub(super) const KEYS: &[KeyDoc] = &[
    KeyDoc {
        key: "state",
        meaning: "The goal. `deployed`: installed and kept installed. `available`: switched off \
            and kept off, the disk left alone. `unmanaged`: observed only.",
        example: "",
    },
    KeyDoc {
        key: "power",
        meaning: "The power wanted once deployed. hostler acts on a change once, and reports a \
            later difference.",
        example: "",
    },
    KeyDoc {
        key: "paused",
        meaning: "`true`: start nothing, stop what is under way, keep observing.",
        example: "",
    },
    KeyDoc {
        key: "redeploy",
        meaning: "Any text. Changing it is consent to WIPE the machine and install it again.",
        example: "\"2026-12-01\"",
    },
    KeyDoc { key: "boot", meaning: "How the machine boots.", example: "" },
    KeyDoc {
        key: "boot.mac",
        meaning: "The network interface that the machine netboots from; a list if the first one is \
            not certain.",
        example: "\"52:54:00:12:34:56\"",
    },
    KeyDoc { key: "boot.firmware", meaning: "The machine's firmware.", example: "" },
    KeyDoc { key: "boot.arch", meaning: "The machine's processor architecture.", example: "" },
    KeyDoc {
        key: "boot.loader",
        meaning: "The boot loader of an installation. `auto`: whichever the machine asks for.",
        example: "",
    },
    KeyDoc {
        key: "boot.after",
        meaning: "The device that the installed system boots from.",
        example: "",
    },
    KeyDoc {
        key: "boot.ramdisk",
        meaning: "The deploy ramdisk. `ironic` needs `[ironic]` in `hostler.toml` and \
            `boot.require_chap = false`.",
        example: "",
    },
    KeyDoc {
        key: "boot.require_chap",
        meaning: "`false` accepts a target that asks for no name and secret: everybody on the \
            deploy network can then write the exported disk.",
        example: "",
    },
    KeyDoc {
        key: "boot.kernel_args",
        meaning: "Words added to the deploy ramdisk's command line.",
        example: "[\"console=ttyS1,115200\"]",
    },
    KeyDoc {
        key: "bmc",
        meaning: "The controller that switches the machine's power.",
        example: "",
    },
    KeyDoc {
        key: "bmc.driver",
        meaning: "How hostler speaks to the BMC. `program`: a program of yours. `none`: an \
            operator switches the power.",
        example: "",
    },
    KeyDoc {
        key: "bmc.program",
        meaning: "The absolute path of the program, for `bmc.driver = \"program\"`.",
        example: "\"/etc/hostler/pdu\"",
    },
    KeyDoc {
        key: "bmc.address",
        meaning: "`host` or `host:port`; IPv6 as `2001:db8::7` or `[2001:db8::7]:623`. With a \
            program any text, by default the node's name. Not needed with `bmc.driver = \
            \"none\"`.",
        example: "\"192.0.2.20\"",
    },
    KeyDoc { key: "bmc.username", meaning: "The BMC's user.", example: "\"admin\"" },
    KeyDoc {
        key: "bmc.password_file",
        meaning: "A file in the agent's secrets directory. Needed unless `bmc.password_credential` \
            is there or the driver is `program` or `none`.",
        example: "\"edge-07.bmc\"",
    },
    KeyDoc {
        key: "bmc.password_credential",
        meaning: "Instead of the file, a credential of the agent's service (`LoadCredential=`).",
        example: "\"edge-07\"",
    },
    KeyDoc {
        key: "bmc.kg_file",
        meaning: "The BMC key (K_g): a file in the secrets directory, up to 20 characters or `0x` \
            and hex digits.",
        example: "\"edge-07.kg\"",
    },
    KeyDoc {
        key: "bmc.privilege",
        meaning: "The privilege level of the IPMI session.",
        example: "",
    },
    KeyDoc {
        key: "bmc.cipher_suite",
        meaning: "The cipher suite of the IPMI session; without it 17, then 3.",
        example: "17",
    },
    KeyDoc {
        key: "bmc.match_system_uuid",
        meaning: "The machine that boots the ramdisk must have the UUID that this BMC reports.",
        example: "",
    },
    KeyDoc {
        key: "bmc.console",
        meaning: "Keep the serial console's last 64 KiB when an attempt fails; only with \
            `bmc.driver = \"ipmi\"`.",
        example: "",
    },
    KeyDoc {
        key: "root_device",
        meaning: "Hints, all of which must match exactly one disk. Without any: the only disk, \
            once the disks have been the same for ten seconds. Machines whose disks appear later \
            want a hint.",
        example: "",
    },
    KeyDoc {
        key: "root_device.name",
        meaning: "The disk's kernel name, which may change from one boot to the next.",
        example: "\"/dev/nvme0n1\"",
    },
    KeyDoc {
        key: "root_device.serial",
        meaning: "The disk's serial number.",
        example: "\"S6PUNX0T123456\"",
    },
    KeyDoc {
        key: "root_device.wwn",
        meaning: "The disk's World Wide Name.",
        example: "\"0x5002538f00000001\"",
    },
    KeyDoc {
        key: "root_device.model",
        meaning: "The disk's model.",
        example: "\"SAMSUNG MZ7L3480\"",
    },
    KeyDoc { key: "root_device.vendor", meaning: "The disk's vendor.", example: "\"ATA\"" },
    KeyDoc {
        key: "root_device.hctl",
        meaning: "The disk's SCSI host, channel, target and lun.",
        example: "\"0:0:1:0\"",
    },
    KeyDoc {
        key: "root_device.size",
        meaning: "The disk's size, with a comparison if one is meant.",
        example: "\">= 400GB\"",
    },
    KeyDoc {
        key: "root_device.rotational",
        meaning: "`true` for a hard disk, `false` for a solid-state one.",
        example: "false",
    },
    KeyDoc {
        key: "root_device.by_path",
        meaning: "The disk's name in `/dev/disk/by-path`.",
        example: "\"pci-0000:00:17.0-ata-1\"",
    },
    KeyDoc {
        key: "root_device.multipath",
        meaning: "`first`: paths to one disk count as one, which is written through the first.",
        example: "\"first\"",
    },
    KeyDoc { key: "image", meaning: "The system that is written to the disk.", example: "" },
    KeyDoc {
        key: "image.source",
        meaning: "A path or an http(s) URL. A relative path is relative to `images.dir` of the \
            configuration.",
        example: "\"debian-13.qcow2\"",
    },
    KeyDoc {
        key: "image.checksum",
        meaning: "`sha256:` or `sha512:` of the file as published, or the path or URL of a list.",
        example: "\"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"",
    },
    KeyDoc {
        key: "image.format",
        meaning: "The image's format. `auto`: found by looking into the file.",
        example: "",
    },
    KeyDoc {
        key: "image.kind",
        meaning: "`disk`: a whole disk. `partition`: one file system, for which hostler makes the \
            partitions.",
        example: "",
    },
    KeyDoc {
        key: "image.verify",
        meaning: "The written disk is compared with the image by the machine (`node`), by hostler, \
            which reads it back (`full`), or not at all (`none`). With `boot.ramdisk = \"ironic\"` \
            the default is `full`.",
        example: "",
    },
    KeyDoc {
        key: "image.kernel",
        meaning: "The system's own kernel, a path.",
        example: "\"debian-13/vmlinuz\"",
    },
    KeyDoc {
        key: "image.ramdisk",
        meaning: "The system's own ramdisk, a path.",
        example: "\"debian-13/initrd.img\"",
    },
    KeyDoc {
        key: "image.kernel_checksum",
        meaning: "The kernel's digest.",
        example: "\"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"",
    },
    KeyDoc {
        key: "image.ramdisk_checksum",
        meaning: "The ramdisk's digest.",
        example: "\"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"",
    },
    KeyDoc {
        key: "image.kernel_args",
        meaning: "Words added to the system's command line.",
        example: "[\"quiet\"]",
    },
    KeyDoc {
        key: "partitions",
        meaning: "The partitions that are made for one file system.",
        example: "",
    },
    KeyDoc {
        key: "partitions.table",
        meaning: "The kind of partition table. `msdos` holds at most four partitions.",
        example: "",
    },
    KeyDoc {
        key: "partitions.swap",
        meaning: "The swap partition's size; without it there is none.",
        example: "\"4GiB\"",
    },
    KeyDoc {
        key: "partitions.ephemeral",
        meaning: "The size of an empty partition for data; without it there is none.",
        example: "\"20GiB\"",
    },
    KeyDoc {
        key: "partitions.root",
        meaning: "The root partition's size, or `max`: the rest of the disk.",
        example: "\"40GiB\"",
    },
    KeyDoc {
        key: "config_drive",
        meaning: "cloud-init's data, in a partition of its own.",
        example: "",
    },
    KeyDoc {
        key: "config_drive.label",
        meaning: "The drive's label, which decides the layout: OpenStack's (`config-2`) or \
            NoCloud's (`cidata`).",
        example: "",
    },
    KeyDoc { key: "config_drive.filesystem", meaning: "The drive's file system.", example: "" },
    KeyDoc {
        key: "config_drive.user_data_file",
        meaning: "The file with cloud-init's user data, in the spec directory.",
        example: "\"cloud-init/edge.yaml\"",
    },
    KeyDoc {
        key: "config_drive.network_config_file",
        meaning: "The file with the network configuration, in the spec directory: OpenStack's \
            `network_data.json` for `config-2`, cloud-init's own format for `cidata`.",
        example: "\"cloud-init/network.json\"",
    },
    KeyDoc {
        key: "config_drive.vendor_data_file",
        meaning: "The file with cloud-init's vendor data, in the spec directory.",
        example: "\"cloud-init/vendor.yaml\"",
    },
    KeyDoc {
        key: "config_drive.meta_data",
        meaning: "Metadata for the system: keys of your own, each a text or a list of texts. \
            `hostname`, `name`, `uuid`, `local-hostname` and `instance-id` are one text.",
        example: "{ hostname = \"edge-07\" }",
    },
    KeyDoc {
        key: "boot_check",
        meaning: "How the installed system shows that it is up.",
        example: "",
    },
    KeyDoc {
        key: "boot_check.by",
        meaning: "`call`: the system calls hostler, which needs a config drive. `tcp`: hostler \
            connects to it. `none`: hostler does not wait for it.",
        example: "",
    },
    KeyDoc {
        key: "boot_check.port",
        meaning: "The TCP port where the system answers.",
        example: "22",
    },
    KeyDoc {
        key: "boot_check.address",
        meaning: "The host name or IP address where the system answers. By default the first \
            static one in OpenStack's `network_data.json`.",
        example: "\"192.0.2.107\"",
    },
    KeyDoc { key: "timeouts", meaning: "How long each phase may take.", example: "" },
    KeyDoc {
        key: "timeouts.ramdisk",
        meaning: "From power on until the deploy ramdisk calls back.",
        example: "",
    },
    KeyDoc {
        key: "timeouts.root_device",
        meaning: "How long the deploy ramdisk looks for a root device that appears late.",
        example: "",
    },
    KeyDoc {
        key: "timeouts.imaging_stall",
        meaning: "Without a byte of progress while imaging.",
        example: "",
    },
    KeyDoc { key: "timeouts.imaging", meaning: "The whole imaging.", example: "" },
    KeyDoc {
        key: "timeouts.completed",
        meaning: "Until the ramdisk has let go of the disk.",
        example: "",
    },
    KeyDoc {
        key: "timeouts.power",
        meaning: "For the BMC to answer and the power to change; with `bmc.driver = \"none\"` how \
            long the agent waits for an operator, by default 168h.",
        example: "",
    },
    KeyDoc {
        key: "timeouts.first_boot",
        meaning: "From the restart until the installed system has shown that it is up.",
        example: "",
    },
    KeyDoc { key: "retry", meaning: "The repetition of failed attempts.", example: "" },
    KeyDoc { key: "retry.attempts", meaning: "How many attempts there are.", example: "" },
    KeyDoc {
        key: "retry.backoff",
        meaning: "The pause before the second attempt; the pause doubles from there.",
        example: "",
    },
];
