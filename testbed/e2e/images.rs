//! Images in other formats than a raw disk, from a web server, and files beside them.

mod nginx;

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Output},
};

use hostler::model::status::Phase;

use self::nginx::Nginx;
use crate::{
    disks,
    rack::Machine,
    site::{BOOT_LIMIT, Site},
};

const USER_DATA: &str = "#cloud-config\nhostname: edge\n";

#[test]
fn a_compressed_qcow2_comes_over_http_and_gets_a_config_drive_and_the_machine_itself_checks_its_disk()
 {
    let mut site = Site::new("images", &["uefi"], "1G");
    let raw = site.image("disk.raw", 4);
    let machine = site.rack.machine("node-1");
    disks::fill(&machine);
    let nginx = Nginx::start(&site.rack);
    let checksum = pack(&raw.path, &nginx.file("disk.qcow2.xz"));
    fs::write(nginx.file("SHA256SUMS"), format!("{checksum}  disk.qcow2.xz\n")).unwrap();
    fs::create_dir(site.file("nodes/cloud")).unwrap();
    fs::write(site.file("nodes/cloud/user-data"), USER_DATA).unwrap();
    site.write_spec(
        &machine,
        &format!(
            r#"
            [image]
            source = "{}"
            checksum = "{}"
            verify = "node"
            [config_drive]
            user_data_file = "cloud/user-data"
            [root_device]
            serial = "{}"
            "#,
            Nginx::url("disk.qcow2.xz"),
            Nginx::url("SHA256SUMS"),
            machine.disks[0].serial
        ),
    );

    let status = site.wait_for_phase(&machine.name, Phase::Deployed, BOOT_LIMIT);
    for stage in ["fetch_ms", "decode_ms", "write_ms", "verify_ms"] {
        assert!(status.durations.contains_key(stage), "{stage}: {:?}", status.durations);
    }
    let installed = status.installed.unwrap();
    assert_eq!(installed.image.to_string(), format!("sha256:{checksum}"));
    assert!(nginx.log().contains("GET /disk.qcow2.xz 200\n"), "{}", nginx.log());
    disks::assert_holds(&machine, &raw);
    assert_eq!(user_data(&machine), USER_DATA);
    site.assert_runs_image(&machine);
}

/// Makes a qcow2 image with compressed clusters, and compresses the file once more. Returns its
/// SHA-256.
fn pack(raw: &Path, packed: &Path) -> String {
    let qcow2 = packed.with_extension("");
    let paths = [raw.to_str().unwrap(), qcow2.to_str().unwrap()];
    run(
        "qemu-img",
        &["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", paths[0], paths[1]],
    );
    run("xz", &["-1", paths[1]]);
    String::from_utf8(run("sha256sum", &[packed.to_str().unwrap()]).stdout).unwrap()[..64]
        .to_owned()
}

/// Reads the config drive as cloud-init does: the partition's number, its place and the file on it.
fn user_data(machine: &Machine) -> String {
    let disk = machine.disks[0].path.to_str().unwrap();
    let table = String::from_utf8(run("sgdisk", &["--print", disk]).stdout).unwrap();
    let drive = table.lines().find(|line| line.trim_end().ends_with("config-2")).unwrap();
    let first: u64 = drive.split_whitespace().nth(1).unwrap().parse().unwrap();
    let mut label = vec![0; 1 << 16];
    fs::File::open(disk).unwrap().read_exact_at(&mut label, first * 512).unwrap();
    assert!(label.windows(8).any(|bytes| bytes == b"config-2"), "the drive has no label");
    let place = format!("{disk}@@{}", first * 512);
    let read = run("mtype", &["-i", &place, "::openstack/latest/user_data"]);
    String::from_utf8(read.stdout).unwrap()
}

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    output
}
