//! The package's files against the code: directories, ports and programs.
//!
//! lintian judges the package itself (`testbed/check package`), and the host suite installs it.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path};

use hostler::config::{self, Config};

use crate::documents::{documents, read};

/// The configuration that the package brings.
fn shipped() -> Config {
    config::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hostler.toml")).unwrap()
}

/// Invariant (code): The package opens the ports and makes the directories of its own
/// configuration.
#[test]
fn the_firewalls_services_open_the_ports_of_the_packages_configuration() {
    let Config { tftp, http, callback, .. } = shipped();
    let port = |listen: SocketAddr, kind| format!("{}/{kind}", listen.port());
    let wanted = BTreeSet::from([
        port(tftp.listen, "udp"),
        port(http.listen, "tcp"),
        port(callback.listen, "tcp"),
    ]);

    let ufw = read("packaging/hostler.ufw");
    let ports = ufw.lines().find_map(|line| line.strip_prefix("ports=")).unwrap();
    assert_eq!(ports.split('|').map(str::to_owned).collect::<BTreeSet<_>>(), wanted);

    let firewalld = read("packaging/hostler.firewalld.xml");
    let attribute = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\"")).unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let lines = firewalld.lines().filter(|line| line.contains("<port "));
    let opened: BTreeSet<String> = lines
        .map(|line| format!("{}/{}", attribute(line, "port"), attribute(line, "protocol")))
        .collect();
    assert_eq!(opened, wanted);
}

#[test]
fn the_package_makes_the_directories_of_its_configuration_with_their_owners() {
    let Config { specs, state, images, secrets, tftp, .. } = shipped();
    let tmpfiles = read("systemd/hostler.tmpfiles");
    let made: BTreeSet<Vec<&str>> = tmpfiles
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().skip(1).collect())
        .collect();
    for (dir, mode, owner) in [
        (specs.dir, "0755", "hostler"),
        (secrets.dir, "0700", "hostler"),
        (state.dir, "0700", "hostler"),
        (images.dir, "0755", "hostler"),
        (tftp.loaders, "0755", "root"),
    ] {
        let line = vec![dir.to_str().unwrap(), mode, owner, owner];
        assert!(made.contains(&line), "{line:?} is not among {made:#?}");
    }
}

/// The purge removes each directory that the package or the agent made.
#[test]
fn a_purge_removes_every_directory_that_the_package_makes() {
    let postrm = read("packaging/scripts/postrm");
    let (_, removed) = postrm.split_once("for dir in ").unwrap();
    let (removed, _) = removed.split_once("; do").unwrap();
    let removed: Vec<&str> = removed.split_whitespace().filter(|word| *word != "\\").collect();
    let tmpfiles = read("systemd/hostler.tmpfiles");
    let made = tmpfiles.lines().filter(|line| !line.starts_with('#'));
    for dir in made.filter_map(|line| line.split_whitespace().nth(1)) {
        assert!(removed.iter().any(|root| Path::new(dir).starts_with(root)), "{dir} would be left");
    }
    assert!(removed.iter().all(|root| root.contains("/hostler")), "{removed:?}");
}

#[test]
fn the_package_holds_every_page_about_the_use() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    for page in documents().iter().filter(|page| page.starts_with("docs/using/")) {
        let (folder, _) = page.rsplit_once('/').unwrap();
        let pages = format!("{folder}/*.md");
        let asset = assets.iter().find(|asset| asset[0].as_str() == Some(&pages));
        let placed = asset.and_then(|asset| asset[1].as_str());
        let wanted = format!("usr/share/doc/hostler/{}/", folder.trim_start_matches("docs/"));
        assert_eq!(placed, Some(&*wanted), "{page}");
    }
}

#[test]
fn the_package_holds_what_the_unit_runs_and_the_ramdisk_is_built_from() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let placed = |source: &str| {
        let asset = assets.iter().find(|asset| asset[0].as_str() == Some(source)).unwrap();
        let name = source.rsplit('/').next().unwrap();
        format!("/{}{name}", asset[1].as_str().unwrap())
    };
    let unit =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/hostler.service"));
    let hostler = placed("target/release/hostler");
    assert!(unit.unwrap().contains(&format!("ExecStart={hostler} run")), "{hostler}");
    let ramdisk = placed("target/release/hostler-ramdisk");
    assert!(read("src/cli/ramdisk.rs").contains(&format!("= \"{ramdisk}\";")), "{ramdisk}");
}
