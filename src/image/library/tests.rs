//! Invariants of the library: callers share one fetch, no incomplete image is returned, and no
//! image in use is removed.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use rustix::fs::{FlockOperation, flock, inotify};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet};

use super::{cache::CacheFileKind, *};
use crate::{
    model::ids::DigestAlgorithm,
    progress::{Cancel, Meter},
};

/// Images and a cache.
struct Site {
    /// Removed at the end.
    _dir: TempDir,
    options: LibraryOptions,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = LibraryOptions {
            dir: dir.path().join("images"),
            allowed_dirs: Vec::new(),
            cache_dir: dir.path().join("cache"),
            cache_bytes: u64::MAX,
            published_bytes_max: u64::MAX,
            raw_bytes_max: u64::MAX,
        };
        fs::create_dir(&options.dir).unwrap();
        Self { _dir: dir, options }
    }

    fn library(&self) -> Library {
        Library::new(self.options.clone())
    }

    /// Publishes an image with unique content.
    fn publish(&self, name: &str, bytes: usize) -> spec::Image {
        let mut random = fastrand::Rng::with_seed(name.bytes().map(u64::from).sum());
        let content: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
        fs::write(self.options.dir.join(name), &content).unwrap();
        let digest = Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(&content));
        spec::Image {
            source: name.to_owned(),
            checksum: spec::Checksum::Inline(digest.unwrap()),
            format: ImageFormat::Raw,
            kind: spec::ImageKind::Disk,
            verify: spec::Verify::None,
            netboot: None,
        }
    }

    fn unpublish(&self, image: &spec::Image) {
        fs::remove_file(self.options.dir.join(&image.source)).unwrap();
    }

    fn file(&self, image: &spec::Image, kind: CacheFileKind) -> PathBuf {
        Cache { dir: self.options.cache_dir.clone() }
            .path(&Name::new(&digest(image), image.format), kind)
    }

    /// Leaves the state of a killed agent.
    fn end_uncleanly(&self) {
        let session = self.options.cache_dir.join("session");
        let ended = fs::read_to_string(&session).unwrap();
        fs::write(&session, ended.replace("ended", "begun")).unwrap();
    }

    /// The number of names in the cache with this suffix.
    fn left(&self, suffix: &str) -> usize {
        let files = fs::read_dir(&self.options.cache_dir).unwrap();
        files
            .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == suffix))
            .count()
    }
}

fn digest(image: &spec::Image) -> Digest {
    let spec::Checksum::Inline(digest) = &image.checksum else { panic!("listed") };
    digest.clone()
}

fn never() -> Cancel {
    let (sender, cancel) = watch::channel(false);
    std::mem::forget(sender);
    cancel
}

async fn get_until(
    library: &Library,
    image: &spec::Image,
    cancel: Cancel,
) -> Result<Entry, Arc<ImageError>> {
    let meter = Meter::default();
    let watch = Watch { cancel, stall: Duration::from_secs(20), meter: &meter };
    library.get(image, &digest(image), &watch).await
}

async fn get(library: &Library, image: &spec::Image) -> Result<Entry, Arc<ImageError>> {
    get_until(library, image, never()).await
}

fn content(entry: &Entry) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(entry.bytes).unwrap()];
    entry.file.read_exact_at(&mut content, 0).unwrap();
    content
}

/// Flips a bit as a failing disk does, without changing the file's time.
fn decay(path: &Path, at: u64) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(modified).unwrap();
}

/// Locks the image as another process does, until the lock is dropped.
fn somebody_else(site: &Site, image: &spec::Image) -> File {
    fs::create_dir_all(&site.options.cache_dir).unwrap();
    let lock = File::create(site.file(image, CacheFileKind::Lock)).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    lock
}

/// Counts the starts of fetches.
struct Fetches(rustix::fd::OwnedFd);

impl Fetches {
    fn into(dir: &Path) -> Self {
        let created = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&created, dir, inotify::WatchFlags::CREATE).unwrap();
        Self(created)
    }

    fn count(&self) -> usize {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut count = 0;
        while let Ok(event) = events.next() {
            let name = event.file_name().unwrap().to_str().unwrap();
            count += usize::from(
                Name::of_file(name).is_some_and(|(_, kind)| kind == CacheFileKind::Partial),
            );
        }
        count
    }
}

/// Invariant (image): Many nodes share one fetch.
#[tokio::test]
async fn ten_nodes_share_one_fetch_and_one_file() {
    let site = Site::new();
    let image = site.publish("a.raw", 3 << 20);
    let library = site.library();
    let held = somebody_else(&site, &image);
    let fetches = Fetches::into(&site.options.cache_dir);
    let mut gets = JoinSet::new();
    for _ in 0..10 {
        let (library, image) = (library.clone(), image.clone());
        gets.spawn(async move { get(&library, &image).await.unwrap() });
    }
    tokio::task::yield_now().await;
    drop(held);
    let entries = gets.join_all().await;
    assert_eq!(fetches.count(), 1);
    let published = fs::read(site.options.dir.join("a.raw")).unwrap();
    for entry in &entries {
        assert!(std::ptr::eq(entry.file.file(), entries[0].file.file()));
    }
    assert_eq!(content(&entries[0]), published);
    assert_eq!(fs::metadata(&site.options.cache_dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&entries[0].path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn who_leaves_first_does_not_stop_it_for_the_others() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let library = site.library();
    let held = somebody_else(&site, &image);
    let (stop, cancel) = watch::channel(false);
    let (first, second) = tokio::join!(get_until(&library, &image, cancel), async {
        let second = get(&library, &image);
        stop.send_replace(true);
        drop(held);
        second.await
    });
    assert!(matches!(*first.unwrap_err(), ImageError::Cancelled));
    assert_eq!(second.unwrap().bytes, 1 << 20);
}

#[tokio::test]
async fn nothing_goes_on_for_nobody() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let library = site.library();
    let held = somebody_else(&site, &image);
    let (stop, cancel) = watch::channel(false);
    let (gone, ()) = tokio::join!(get_until(&library, &image, cancel), async {
        stop.send_replace(true);
    });
    assert!(matches!(*gone.unwrap_err(), ImageError::Cancelled));
    // The work holds the library until it has stopped.
    let inner = Arc::downgrade(&library.0);
    drop(library);
    let stops = async {
        while inner.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), stops).await.unwrap();
    drop(held);
    assert_eq!(site.left("part") + site.left("raw"), 0);
}

#[tokio::test]
async fn all_hear_of_one_failure_and_the_next_one_tries_again() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    fs::rename(site.options.dir.join("a.raw"), site.options.dir.join("away")).unwrap();
    let library = site.library();
    let (one, other) = tokio::join!(get(&library, &image), get(&library, &image));
    assert!(Arc::ptr_eq(&one.unwrap_err(), &other.unwrap_err()));
    fs::rename(site.options.dir.join("away"), site.options.dir.join("a.raw")).unwrap();
    assert_eq!(get(&library, &image).await.unwrap().bytes, 1 << 20);
}

#[tokio::test]
async fn what_differs_from_its_checksum_is_refused_and_not_kept() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    site.publish("b.raw", 1 << 20);
    fs::rename(site.options.dir.join("b.raw"), site.options.dir.join("a.raw")).unwrap();
    let error = get(&site.library(), &image).await.unwrap_err();
    assert!(matches!(*error, ImageError::Fetch(FetchError::Checksum { .. })));
    assert_eq!(site.left("part") + site.left("raw") + site.left("toml"), 0);
}

#[tokio::test]
async fn an_image_or_list_that_is_missing_or_wrong_is_named_once() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let (path, library) = (site.options.dir.join("a.raw"), site.library());
    fs::write(&path, "other").unwrap();
    let wrong = get(&library, &image).await.unwrap_err();
    fs::remove_file(&path).unwrap();
    let missing = get(&library, &image).await.unwrap_err();
    let listed =
        spec::Image { checksum: spec::Checksum::Listed("SHA256SUMS".to_owned()), ..image.clone() };
    let (meter, stall) = (Meter::default(), Duration::from_secs(20));
    let watch = Watch { cancel: never(), stall, meter: &meter };
    let no_list = library.digest(&listed, &watch).await.unwrap_err();
    let [list, gone] = [site.options.dir.join("SHA256SUMS"), path].map(|p| p.display().to_string());
    for (error, begins, name) in [
        (&*wrong, "image a.raw: its checksum is ".to_owned(), "a.raw"),
        (&missing, format!("image {gone}: No such file"), "a.raw"),
        (&no_list, format!("list of checksums {list}: No such file"), "SHA256SUMS"),
    ] {
        let text = error.to_string();
        assert!(text.starts_with(&begins) && text.matches(name).count() == 1, "{text}");
    }
}

#[tokio::test]
async fn a_damaged_beginning_of_a_fetch_is_fetched_again_at_once() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    fs::create_dir(&site.options.cache_dir).unwrap();
    fs::write(site.file(&image, CacheFileKind::Partial), vec![7; 1 << 19]).unwrap();
    let entry = get(&site.library(), &image).await.unwrap();
    assert_eq!(content(&entry), fs::read(site.options.dir.join("a.raw")).unwrap());
    assert_eq!(site.left("part"), 0);
}

#[tokio::test]
async fn an_entry_outlives_clean_and_unclean_ends_without_its_source() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let first = content(&get(&site.library(), &image).await.unwrap());
    site.unpublish(&image);
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), first);
    site.end_uncleanly();
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), first);
    // The state after a restore from a backup.
    let raw = File::options().write(true).open(site.file(&image, CacheFileKind::Raw)).unwrap();
    raw.set_modified(SystemTime::now()).unwrap();
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), first);
}

/// Invariant (image): A cached image is whole or absent, and one in use is never removed.
#[tokio::test]
async fn one_decayed_bit_after_an_unclean_end_is_found_and_the_image_fetched_again() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let whole = content(&get(&site.library(), &image).await.unwrap());
    decay(&site.file(&image, CacheFileKind::Raw), 123_456);
    site.end_uncleanly();
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), whole);

    decay(&site.file(&image, CacheFileKind::Raw), 7);
    site.end_uncleanly();
    site.unpublish(&image);
    get(&site.library(), &image).await.unwrap_err();
    assert_eq!(site.left("raw"), 0, "the damaged one is gone");
}

#[tokio::test]
async fn a_bit_that_decays_in_use_is_noticed_where_it_is_read_and_the_image_fetched_again() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let library = site.library();
    let first = get(&library, &image).await.unwrap();
    let whole = content(&first);
    decay(&site.file(&image, CacheFileKind::Raw), 123_456);
    // Only a read detects the decay.
    let decayed = get(&library, &image).await.unwrap();
    assert!(!decayed.file.has_decayed());
    let mut buffer = vec![0; 1 << 20];
    decayed.file.read_exact_at(&mut buffer[..1 << 16], 0).unwrap();
    let error = decayed.file.read_exact_at(&mut buffer, 0).unwrap_err().to_string();
    assert!(error.starts_with("the block at byte 65536 is not what was verified"), "{error}");
    assert!(decayed.file.has_decayed());
    library.discard(&decayed).unwrap();
    // Other users still hold it, and do not block another fetch.
    let good = get(&library, &image).await.unwrap();
    assert_eq!(content(&good), whole);
    // A later report of the decay does not remove the new entry.
    library.discard(&first).unwrap();
    site.unpublish(&image);
    assert_eq!(content(&get(&library, &image).await.unwrap()), whole);
}

/// Invariant (image): A cached image that has decayed is noticed at its reading and never
/// installed.
#[tokio::test]
async fn what_is_known_of_an_image_is_whole_or_the_image_is_read_or_fetched_again() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let whole = content(&get(&site.library(), &image).await.unwrap());
    let about = site.file(&image, CacheFileKind::About);
    let good = fs::read(&about).unwrap();
    let cache = Cache { dir: site.options.cache_dir.clone() };
    let name = Name::new(&digest(&image), image.format);
    assert!(cache.about(&name).is_some());
    for at in 0..good.len() {
        // One bit of each byte is enough: the seal covers all bits alike.
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&about, bad).unwrap();
        assert_eq!(cache.about(&name), None, "byte {at}");
        fs::write(&about, &good[..at]).unwrap();
        assert_eq!(cache.about(&name), None, "{at} bytes");
    }
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), whole);
    // With damaged checksums the image is read, and they are made anew.
    decay(&site.file(&image, CacheFileKind::Sums), 9);
    site.unpublish(&image);
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), whole);
    fs::remove_file(site.file(&image, CacheFileKind::Sums)).unwrap();
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), whole);
}

/// Invariant (image): A cached image that has decayed is noticed at its reading and never
/// installed.
#[tokio::test]
async fn an_image_that_the_first_version_kept_is_read_once_and_not_fetched_again() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let whole = content(&get(&site.library(), &image).await.unwrap());
    site.unpublish(&image);
    let (about, sums) =
        (site.file(&image, CacheFileKind::About), site.file(&image, CacheFileKind::Sums));
    let scratch = tempfile::tempfile().unwrap();
    let raw = File::open(site.file(&image, CacheFileKind::Raw)).unwrap();
    let go_on = &mut |_| std::ops::ControlFlow::Continue(());
    let v1 = content::survey(&raw, &scratch, go_on).unwrap().unwrap().digest_v1;
    let text = fs::read_to_string(&about).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        match line.split_once(" = ").unwrap().0 {
            "version" => "version = 1".to_owned(),
            "content" => format!("content = \"{v1}\""),
            _ => line.to_owned(),
        }
    });
    let old = lines.collect::<Vec<_>>().join("\n");
    fs::remove_file(&sums).unwrap();
    fs::write(&about, &old).unwrap();
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), whole);
    assert!(fs::read_to_string(&about).unwrap().starts_with("version = 2"));

    fs::write(&about, &old).unwrap();
    decay(&site.file(&image, CacheFileKind::Raw), 7);
    get(&site.library(), &image).await.unwrap_err();
    assert_eq!(site.left("raw") + site.left("sums"), 0, "the damaged one is gone");
}

/// Invariant (image): Nothing under a name of the cache keeps an image from being fetched.
#[tokio::test]
async fn whatever_lies_under_a_name_of_the_cache_keeps_no_image_from_being_fetched() {
    type Put = fn(&Path);
    let put: [(&str, Put); 4] = [
        ("a directory", |path| fs::create_dir_all(path.join("inside")).unwrap()),
        ("an empty directory", |path| fs::create_dir(path).unwrap()),
        ("a dangling link", |path| std::os::unix::fs::symlink("/nowhere/x", path).unwrap()),
        ("a FIFO", |path| {
            let mode = rustix::fs::Mode::RWXU;
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, path, fifo, mode, 0).unwrap();
        }),
    ];
    for (what, put) in put {
        for kind in [
            None,
            Some(CacheFileKind::Lock),
            Some(CacheFileKind::Sums),
            Some(CacheFileKind::Raw),
            Some(CacheFileKind::About),
        ] {
            let site = Site::new();
            let (image, other) = (site.publish("a", 100_000), site.publish("b", 50_000));
            let entry = get(&site.library(), &image).await.unwrap();
            let wanted = content(&entry);
            drop(entry);
            let session = || site.options.cache_dir.join("session");
            let path = kind.map_or_else(session, |kind| site.file(&image, kind));
            fs::remove_file(&path).unwrap();
            put(&path);
            let library = site.library();
            let context = format!("{what} as {}", path.display());
            get(&library, &other).await.expect(&context);
            let entry = get(&library, &image).await.expect(&context);
            assert!(content(&entry) == wanted, "{context}");
            library.prune(0).expect(&context);
        }
    }
}

#[tokio::test]
async fn a_file_of_another_length_is_no_entry() {
    let site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    let whole = content(&get(&site.library(), &image).await.unwrap());
    let raw = File::options().write(true).open(site.file(&image, CacheFileKind::Raw)).unwrap();
    raw.set_len(1 << 19).unwrap();
    assert_eq!(content(&get(&site.library(), &image).await.unwrap()), whole);
}

/// Invariant (image): A cached image is whole or absent, and one in use is never removed.
#[tokio::test]
async fn what_was_used_longest_ago_goes_first_and_what_is_in_use_stays() {
    let mut site = Site::new();
    site.options.cache_bytes = 7 << 19;
    let library = site.library();
    let images = ["a", "b", "c"].map(|name| site.publish(name, 1 << 20));
    for (image, age_s) in images.iter().zip([30, 20, 10]) {
        get(&library, image).await.unwrap();
        let lock = File::options().write(true).open(site.file(image, CacheFileKind::Lock)).unwrap();
        lock.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
    }
    let there = || images.each_ref().map(|image| site.file(image, CacheFileKind::Raw).exists());
    let used = get(&library, &images[1]).await.unwrap();
    get(&library, &site.publish("d", 1 << 20)).await.unwrap();
    assert_eq!(there(), [false, true, true], "the oldest");
    get(&library, &site.publish("e", 1 << 20)).await.unwrap();
    assert_eq!(there(), [false, true, false], "and not the one that was used since");

    let states: Vec<bool> = library.list().unwrap().iter().map(|kept| kept.in_use).collect();
    assert_eq!(states.iter().filter(|in_use| **in_use).count(), 1);
    let pruned = site.library().prune(0).unwrap();
    assert_eq!((pruned.removed.len(), there()), (2, [false, true, false]));
    assert!(pruned.left_bytes >= 1 << 20, "{pruned:?}");
    let clone = used.clone();
    drop(used);
    assert_eq!(site.library().prune(0).unwrap().removed.len(), 0, "a copy holds it too");
    drop(clone);
    assert_eq!(site.library().prune(0).unwrap().left_bytes, 0);
    assert_eq!(fs::read_dir(&site.options.cache_dir).unwrap().count(), 1, "only the session");
}

#[tokio::test]
async fn limits_refuse_what_is_too_large() {
    let mut site = Site::new();
    let image = site.publish("a.raw", 1 << 20);
    site.options.published_bytes_max = (1 << 20) - 1;
    let error = get(&site.library(), &image).await.unwrap_err();
    assert!(error.to_string().ends_with("1.0 MiB, at most 1023.9 KiB are allowed"), "{error}");
    site.options.published_bytes_max = 1 << 20;
    site.options.raw_bytes_max = (1 << 20) - 1;
    let error = get(&site.library(), &image).await.unwrap_err();
    let said = "a disk of 1.0 MiB (1048576 bytes), which is more than 1023.9 KiB (1048575 bytes), \
        the most that images.raw_max allows";
    assert!(error.to_string().ends_with(said), "{error}");
    assert_eq!(site.left("part") + site.left("raw"), 0);
    site.options.raw_bytes_max = 1 << 20;
    get(&site.library(), &image).await.unwrap();
}

#[tokio::test]
async fn leftovers_of_crashes_go_after_a_day_or_beside_an_entry() {
    let site = Site::new();
    let [whole, old, new] = ["a", "b", "c"].map(|name| site.publish(name, 1 << 20));
    get(&site.library(), &whole).await.unwrap();
    for image in [&whole, &old, &new] {
        fs::write(site.file(image, CacheFileKind::Partial), "x").unwrap();
        fs::write(site.file(image, CacheFileKind::Temporary), "x").unwrap();
    }
    for (image, hours) in [(&old, 25), (&new, 23)] {
        let lock = File::create(site.file(image, CacheFileKind::Lock)).unwrap();
        lock.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    }
    fs::write(site.options.cache_dir.join("notes.txt"), "somebody's").unwrap();
    site.library().prune(u64::MAX).unwrap();
    for (image, left) in [(&whole, false), (&old, false), (&new, true)] {
        for kind in [CacheFileKind::Partial, CacheFileKind::Temporary] {
            assert_eq!(site.file(image, kind).exists(), left, "{} {kind:?}", image.source);
        }
    }
    assert!(site.file(&whole, CacheFileKind::Raw).exists());
    assert!(site.options.cache_dir.join("notes.txt").exists());
}

#[tokio::test]
async fn the_same_file_read_as_another_format_is_another_image() {
    let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let names = [ImageFormat::Auto, ImageFormat::Raw, ImageFormat::Qcow2]
        .map(|format| Name::new(&digest, format));
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
    for name in names {
        assert_eq!(name.digest(), Some(digest.clone()));
        assert_eq!(Name::of_file(&format!("{name}.raw")), Some((name, CacheFileKind::Raw)));
    }
    for foreign in ["session", "notes.raw", "sha256-ab.raw", ".sha256-x.toml.tmp", ""] {
        assert_eq!(Name::of_file(foreign), None, "{foreign}");
    }
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(
        name in ".*",
        about in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        Name::of_file(&name);
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { dir: dir.path().to_owned() };
        let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let name = Name::new(&digest, ImageFormat::Auto);
        fs::write(cache.path(&name, CacheFileKind::About), about).unwrap();
        prop_assert_eq!(cache.about(&name), None);
    }
}
