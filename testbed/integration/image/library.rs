//! The image cache through `hostler cache`: in several processes, killed, on full disks and on
//! decaying ones.

mod site;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _, chown},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock, inotify},
    process::{Pid, Signal, kill_process},
};

use self::site::{Site, answer, noise, says};

/// Bytes of an image that is large enough to be caught in the middle.
const LARGE_BYTES: usize = 48 << 20;

/// Invariant (image): Many nodes share one fetch.
#[test]
fn two_processes_fetch_an_image_once() {
    let site = Site::new();
    let image = site.publish("a.raw", &noise(LARGE_BYTES, 1));
    fs::create_dir(site.path("cache")).unwrap();
    let created = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&created, site.path("cache"), inotify::WatchFlags::CREATE).unwrap();
    let processes = [0, 1].map(|_| site.fetch(&image).spawn().unwrap());
    for process in processes {
        assert!(process.wait_with_output().unwrap().status.success());
    }
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&created, &mut buffer);
    let mut fetches = 0;
    while let Ok(event) = events.next() {
        let part = site.cached(&image, "part");
        fetches += usize::from(
            event.file_name().unwrap().to_bytes() == part.file_name().unwrap().as_encoded_bytes(),
        );
    }
    assert_eq!(fetches, 1);
    assert_eq!(fs::read(site.cached(&image, "raw")).unwrap(), image.raw);
}

/// Invariant (image): A cached image is whole or absent, and one in use is never removed.
#[test]
fn a_fetch_killed_at_any_moment_leaves_no_image_or_a_good_one() {
    let site = Site::new();
    let image = site.publish_zstd("a.raw.zst", &noise(LARGE_BYTES / 4, 2));
    let began = Instant::now();
    says(&mut site.fetch(&image));
    let takes = began.elapsed();
    let (mut cut, mut whole) = (0, 0);
    for _ in 0..30 {
        says(&mut site.cache(&["prune", "--all"]));
        let mut process = site.fetch(&image).spawn().unwrap();
        thread::sleep(takes.mul_f64(fastrand::f64() * 1.2));
        process.kill().unwrap();
        process.wait().unwrap();
        if site.cached(&image, "raw").exists() && site.cached(&image, "toml").exists() {
            assert_eq!(fs::read(site.cached(&image, "raw")).unwrap(), image.raw);
            whole += 1;
        } else {
            cut += 1;
        }
        says(&mut site.fetch(&image));
        assert_eq!(fs::read(site.cached(&image, "raw")).unwrap(), image.raw);
        for left in ["part", "tmp", "scratch"] {
            assert!(!site.cached(&image, left).exists(), "{left}");
        }
    }
    assert!(cut > 5, "{cut} cut off, {whole} whole");
}

#[test]
fn an_image_that_decayed_is_fetched_again_after_a_crash() {
    let site = Site::new();
    let image = site.publish("a.raw", &noise(3 << 20, 3));
    let large = site.publish_zstd("b.raw.zst", &noise(LARGE_BYTES, 4));
    says(&mut site.fetch(&image));
    let mut process = site.fetch(&large).spawn().unwrap();
    site.until("its fetch", || site.cached(&large, "part").exists());
    process.kill().unwrap();
    process.wait().unwrap();

    let raw = site.cached(&image, "raw");
    let modified = fs::metadata(&raw).unwrap().modified().unwrap();
    let file = File::options().write(true).open(&raw).unwrap();
    file.write_all_at(&[image.raw[777] ^ 0x10], 777).unwrap();
    file.set_modified(modified).unwrap();
    let (_, errors) = says(&mut site.fetch(&image));
    assert!(errors.contains("the image in the cache is damaged: it is fetched again"), "{errors}");
    assert_eq!(fs::read(&raw).unwrap(), image.raw);
    // The error is reported once.
    let (_, errors) = says(&mut site.fetch(&image));
    assert_eq!(errors, "");
}

#[test]
fn a_fetch_that_is_interrupted_ends_cleanly_and_soon() {
    let site = Site::new();
    let image = site.publish("a.raw", &noise(1 << 20, 5));
    says(&mut site.fetch(&image));
    let large = site.publish_zstd("b.raw.zst", &noise(LARGE_BYTES * 4, 6));
    let process = site.fetch(&large).spawn().unwrap();
    site.until("its fetch", || site.cached(&large, "part").exists());
    kill_process(Pid::from_child(&process), Signal::INT).unwrap();
    let cancelled = Instant::now();
    let output = process.wait_with_output().unwrap();
    assert!(cancelled.elapsed() < Duration::from_secs(2), "{:?}", cancelled.elapsed());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: cancelled\n");
    assert!(fs::read_to_string(site.path("cache/session")).unwrap().starts_with("ended "));
}

#[test]
fn a_disk_too_small_is_said_so_and_images_nobody_uses_make_space() {
    let site = Site::new();
    let _disk = site.small_disk(100);
    let [one, two] =
        [7, 8].map(|seed| site.publish(&format!("{seed}.raw"), &noise(50 << 20, seed)));
    let huge = site.publish("huge.raw", &noise(120 << 20, 9));
    says(&mut site.fetch(&one));
    says(&mut site.fetch(&two));
    assert!(!site.cached(&one, "raw").exists() && site.cached(&two, "raw").exists());

    // Another process writes the second image to a disk.
    let user = File::open(site.cached(&two, "lock")).unwrap();
    flock(&user, FlockOperation::LockShared).unwrap();
    let (code, _, errors) = answer(&mut site.fetch(&one));
    assert_eq!(code, 1);
    assert!(
        errors.contains("image 7.raw: ") && errors.ends_with("needs 50.0 MiB more\n"),
        "{errors}"
    );
    assert_eq!(fs::read(site.cached(&two, "raw")).unwrap(), two.raw);
    assert!(!site.cached(&one, "raw").exists());

    drop(user);
    let (code, _, errors) = answer(&mut site.fetch(&huge));
    assert_eq!(code, 1);
    assert!(errors.ends_with("needs 120.0 MiB more\n"), "{errors}");
    says(&mut site.fetch(&one));
}

#[test]
fn what_unpacks_to_more_than_the_disk_has_is_stopped_before_it_is_full() {
    let site = Site::new();
    let _disk = site.small_disk(100);
    let bomb = site.publish_zstd("bomb.raw.zst", &b"no hole ".repeat(40 << 20));
    assert!(fs::metadata(site.path("images/bomb.raw.zst")).unwrap().size() < 1 << 20);
    let (code, _, errors) = answer(&mut site.fetch(&bomb));
    assert_eq!(code, 1);
    assert!(errors.contains("/cache has 0 B left for images"), "{errors}");
    site.until("its end", || !site.cached(&bomb, "tmp").exists());
    assert!(!site.cached(&bomb, "raw").exists());
}

#[test]
fn what_root_fetches_is_the_agents() {
    let site = Site::new();
    let nobody = 65534;
    fs::create_dir(site.path("state")).unwrap();
    chown(site.path("state"), Some(nobody), Some(nobody)).unwrap();
    site.configure("");
    let image = site.publish("a.raw", &noise(1 << 20, 10));
    says(&mut site.fetch(&image));
    let mut files: Vec<_> =
        fs::read_dir(site.path("state/cache")).unwrap().map(|f| f.unwrap().path()).collect();
    files.push(site.path("state/cache"));
    assert!(files.len() > 4, "{files:?}");
    for file in files {
        assert_eq!(fs::metadata(&file).unwrap().uid(), nobody, "{}", file.display());
    }
}

#[test]
fn images_are_fetched_by_node_by_file_and_by_source_and_listed_and_pruned() {
    let site = Site::new();
    let [one, two] =
        [11, 12].map(|seed| site.publish(&format!("{seed}.raw"), &noise(1 << 20, seed)));
    site.write_spec("edge-07", &one);
    site.write_spec("edge-08", &two);
    let (said, _) = says(&mut site.cache(&["fetch", "edge-07"]));
    assert_eq!(said, format!("11.raw: {}, 1.0 MiB\n", one.digest));
    let file = site.path("nodes/edge-08.toml").display().to_string();
    says(&mut site.cache(&["fetch", &file, "edge-07"]));
    let (listed, _) = says(&mut site.cache(&["list"]));
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.contains(&one.digest) && listed.contains("12.raw"), "{listed}");

    let (code, _, errors) = answer(&mut site.cache(&["fetch", "edge-09", "edge-07"]));
    assert!(code == 1 && errors.contains("edge-09.toml: no such file"), "{errors}");
    fs::remove_file(site.path("images/11.raw")).unwrap();
    says(&mut site.fetch(&one));
    for usage in [
        &["fetch"][..],
        &["fetch", "--source", "x"],
        &["fetch", "edge-07", "--source", "x", "--checksum", "y"],
        &["prune", "--all", "--to", "1GiB"],
        &["prune", "--to", "many"],
    ] {
        assert_eq!(answer(&mut site.cache(usage)).0, 1, "{usage:?}");
    }

    // The first image was requested last.
    let (said, _) = says(&mut site.cache(&["prune", "--to", "1.5MiB"]));
    assert!(
        said.starts_with(&format!("removed {}\n1.0 MiB freed, 1.0 MiB left", two.digest)),
        "{said}"
    );
    let (said, _) = says(&mut site.cache(&["prune", "--all"]));
    assert!(said.ends_with("0 B left\n"), "{said}");
    assert_eq!(says(&mut site.cache(&["list"])).0.lines().count(), 1);
}
